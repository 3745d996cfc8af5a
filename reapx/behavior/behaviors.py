"""Neuro-coding: which output channels of a layer behave alike over the images, and which could stand in for which.

A channel's behaviour is the vector of its values over all images and positions, as the layers that read it see them.
Nothing of that length is stored: inner products of behaviours are sums of the readers' Gram matrices.

Source: K. Kamma, Y. Isoda, S. Inoue and T. Wada, "Neural Behavior-Based Approach for Neural Network Pruning",
IEICE Trans. Inf. & Syst. E103-D(5), 2020.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..capture.graph import Graph
from ..capture.layers import Layer
from ..errors import InputError
from ..groups.channel_groups import Group
from ..inspection.argument_checks import check_arguments
from ..inspection.inspection import Inspection, inspect
from ..selection.find_paths import measure_consumers
from ..selection.paths.consumers import measured_consumers
from ..text import listed, show_bars, table
from .channel_similarity import angular_order, correlate, emulation_errors
from .similarity_figure import Similarity, write_similarity

ALIKE = 0.9
"""Magnitude of a correlation above which the text calls two channels alike."""


class Pair(NamedTuple):
    """One channel that another could emulate; both are rows of :class:`Behaviors`' tables.

    Attributes:
        removed: The channel that would leave.
        partner: The channel that would emulate it.
        error: What that costs, as in ``Behaviors.errors``.
        correlation: Of their behaviours.
    """

    removed: int
    partner: int
    error: float
    correlation: float


@dataclass(frozen=True, eq=False)
class Behaviors:
    """How alike the output channels of one layer behave; ``print`` it, or ``plot`` it.

    Tables have a row for each unit of the layer's group: for each channel, unless channels leave only together.

    Attributes:
        layer: Name of the layer.
        group: Name of its channel group.
        readers: Names of the layers that read the group: it is their inputs that are compared.
        others: Where the layer's other channels are, which are not looked at here: for each further group, and for each
            reason to stay, a line.
        channels: (units, count) int64, the layer's output channels that each row stands for.
        correlation: (units, units) float64 in [-1, 1], between behaviours; those of dead units are uncorrelated.
        errors: (units, units) float64, the share of the readers' output variance that is lost where the column's unit
            emulates the row's, each reader with the best gain of its own; inf on the diagonal. Averaged over readers;
            of readers that fit no intercept, the share of the mean square.
        order: (units,) int64, an order in which similar units are neighbours, dead ones last.
        dead: (count,) int64, units that never change, to float32's rounding. One that is not zero still marks the
            borders of a padded convolution, so that its removal is not free.
        images: Number of images.
        positions: Random positions looked at in each feature map; None for all.
    """

    layer: str
    group: str
    readers: tuple[str, ...]
    others: tuple[str, ...]
    channels: Tensor = field(repr=False)
    correlation: Tensor = field(repr=False)
    errors: Tensor = field(repr=False)
    order: Tensor = field(repr=False)
    dead: Tensor = field(repr=False)
    images: int
    positions: int | None

    def pairs(self, count: int = 10) -> list[Pair]:
        """The cheapest pairs, the cheapest first.

        They can be carried out together: no unit leaves twice, and none leaves that emulates another.

        Args:
            count: At most so many.
        """
        size = len(self.errors)
        flat = self.errors.flatten()
        removed: set[int] = set()
        partners: set[int] = set()
        found: list[Pair] = []
        for place in flat.argsort(stable=True).tolist():
            unit, partner = divmod(place, size)
            error = float(flat[place])
            if len(found) >= count or not math.isfinite(error):
                break
            if unit not in removed and unit not in partners and partner not in removed:
                removed.add(unit)
                partners.add(partner)
                found.append(Pair(unit, partner, error, float(self.correlation[unit, partner])))
        return found

    def alike(self, threshold: float = ALIKE) -> Tensor:
        """(count,) int64 units whose correlation with another has a magnitude above ``threshold``."""
        others = self.correlation.abs() - torch.eye(len(self.correlation), dtype=torch.float64)
        return (others > threshold).any(1).nonzero().flatten()

    def label(self, unit: int) -> str:
        """A unit's output channels in the layer: ``"7"``, ``"3+19"`` or, of many, ``"0 and 15 more"``."""
        own = [str(channel) for channel in self.channels[unit].tolist()]
        return "+".join(own) if len(own) <= 4 else f"{own[0]} and {len(own) - 1} more"

    @property
    def title(self) -> str:
        """What was compared, in a line."""
        size, per_unit = self.channels.shape
        channels = f"{size} channels" if per_unit == 1 else f"{size} units of {per_unit} channels"
        where = "all positions" if self.positions is None else f"{self.positions} random positions of each feature map"
        images = "1 image" if self.images == 1 else f"{self.images} images"
        return f"{self.layer}: {channels}, {images}, {where}"

    def __str__(self) -> str:
        lines = [self.title, f"as read by {listed(self.readers, 3)}"]
        lines += [f"not looked at: {other}" for other in self.others]
        rows = [
            [self.label(unit), self.label(partner), f"{100 * error:.2g} %", f"{correlation:+.3f}"]
            for unit, partner, error, correlation in self.pairs()
        ]
        lines += ["", table(rows, ["channel", "emulated by", "error", "correlation"]), ""]
        text = f"{len(self.alike())} of {len(self.errors)} correlate with another by more than {ALIKE} in magnitude"
        if len(self.dead):
            shown = ", ".join(self.label(unit) for unit in self.dead[:8].tolist())
            text += f"; {len(self.dead)} never change ({shown}{', ...' if len(self.dead) > 8 else ''})"
        return "\n".join([*lines, text])

    def plot(self, path: str | Path) -> Path:
        """Draw the correlations and the errors of all pairs, similar units next to each other.

        Args:
            path: File to write, ``.png`` or ``.svg``; its folder is made if need be.

        Returns:
            The path.

        Raises:
            InputError: the path ends in something else.
            ReapxError: matplotlib is not installed.
        """
        return write_similarity(self._picture(), path)

    def _picture(self) -> Similarity:
        order, dead = self.order, len(self.dead)
        title = self.title + (f"; {dead} never change{'s' if dead == 1 else ''} (last)" if dead else "")
        labels = [self.label(unit) for unit in order.tolist()]
        tables = (table[order][:, order].numpy() for table in (self.correlation, self.errors))
        return Similarity(title, labels, *tables)


def behaviors(
    model: nn.Module,
    images: object,
    layer: str,
    *,
    positions: int | None = None,
    memory: int | None = None,
    progress: bool | None = None,
) -> Behaviors:
    """Compare the output channels of one layer by what they do on images; nothing is touched.

    They are compared as the layers that read them see them: after norm and activation. Of padded convolutions, which
    read zeros beyond the borders, only the kernel's middle tap is asked.

    Args:
        model: Module in eval mode.
        images: As for ``reapx.plan``.
        layer: Name of a layer, or of a group in ``reapx.inspect(model, images).groups`` where the layer's channels
            are in several; a name that is both means the group.
        positions: Look only at this many random positions of each feature map, the same on every run, as the source
            does; all by default. Of vectors and tokens all are looked at.
        memory: Bytes of the device's memory for images before they go to disk; as for ``reapx.plan``.
        progress: Show a progress bar; by default when the terminal is one.

    Returns:
        Correlations, errors of emulation and an order of the channels.

    Raises:
        InputError: images or arguments cannot be used, no layer has this name, its channels are frozen, or they are
            in several groups.
        CaptureError: torch.export refuses the model.
        NumericalError: NaN or Inf in an activation.
    """
    if not isinstance(layer, str):
        raise InputError(f"layer is a {type(layer).__name__}: give a layer's name, as in model.named_modules()")
    check_arguments(positions=positions, progress=progress)
    found = inspect(model, images, memory=memory)
    group, own, others = _find(found, layer)
    graph = found._graph
    moments = measure_consumers(graph, found._images, [group], positions=positions, progress=show_bars(progress))
    if max(parts[0].rows for parts in moments.values()) < 2:
        raise InputError("one image gives each channel a single value, which compares with nothing: give more images")
    dead, correlation = correlate(group.consumers, moments)
    sampled = positions is not None and any(_places(graph, c.layer) > positions for c in group.consumers)
    return Behaviors(
        layer=own.name,
        group=group.name,
        readers=tuple(group.consumer_names),
        others=tuple(others),
        channels=torch.from_numpy(group.cuts[own.weight, own.out_axis]),
        correlation=correlation,
        errors=emulation_errors(measured_consumers(graph, group, moments)),
        order=angular_order(correlation, dead),
        dead=dead.nonzero().flatten(),
        images=found._images.count,
        positions=positions if sampled else None,
    )


def _places(graph: Graph, layer: Layer) -> int:
    """Positions of a layer's output that may be sampled: 1 for vectors and tokens."""
    return math.prod(graph.shape(layer.node)[2:]) if layer.spatial else 1


def _find(found: Inspection, name: str) -> tuple[Group, Layer, list[str]]:
    """The group that a name means, the layer of that name in it, and where the layer's other channels are."""
    channels = found._channels
    producers = {group.name: channels.all_producers(group) for group in found.groups}
    named = [group for group in found.groups if group.name == name]
    made = [group for group in found.groups if any(layer.name == name for layer in producers[group.name])]
    if not named and not made:
        raise InputError(_refusal(found, name))
    if not named and len(made) > 1:
        raise InputError(
            f"the channels of {name} are in {len(made)} groups, coupled to different layers: give the name of one "
            f"group, {' or '.join(repr(group.name) for group in made)}"
        )
    group = (named or made)[0]
    layer = next((layer for layer in producers[group.name] if layer.name == name), group.producers[0])
    other = [g for g in found.groups if g is not group and layer in producers[g.name]]
    places = [f"{g.cuts[layer.weight, layer.out_axis].size} channels in the group {g.name}" for g in other]
    stay = [f"{entry.channels} channels stay: {entry.reason}" for entry in found.frozen if entry.layer == layer.name]
    return group, layer, places + stay


def _refusal(found: Inspection, name: str) -> str:
    """Why a name means no group, and what to do."""
    able = list(dict.fromkeys(layer.name for group in found.groups for layer in found._channels.all_producers(group)))
    reasons = [f"{entry.reason} ({entry.channels} channels)" for entry in found.frozen if entry.layer == name]
    if reasons or any(layer.name == name for layer in found._channels.layers):
        reason = "; ".join(reasons) or "they belong to no group"
        return (
            f"the channels of {name} cannot be compared, since none of them can be removed: {reason}. "
            f"Choose a layer with channels that can: {listed(able)}"
        )
    inside = [other for other in able if other.startswith(f"{name}.")]
    close = inside or difflib.get_close_matches(name, able, n=5, cutoff=0.5)
    which = f"did you mean {listed(close)}?" if close else f"there are {listed(able)}"
    return f"layer={name!r} names no convolution or linear layer; {which} (print(reapx.inspect(model, images)))"
