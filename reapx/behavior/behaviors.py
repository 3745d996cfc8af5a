"""Neuro-coding: which output channels of a layer behave alike over the images, and which could stand in for which.

A channel's behaviour is the vector of its values over all images and positions, as its consumers read them. These
vectors are never stored: their inner products follow from the consumers' Gram matrices.

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

from ..calibration.progress import progress_of
from ..capture.graph import Graph
from ..capture.layers import Layer
from ..capture.precision import plain_mode
from ..errors import InputError
from ..groups.channel_groups import Group
from ..inspection.argument_checks import check_arguments
from ..inspection.inspection import Inspection, inspect
from ..selection.find_paths import measure_consumers
from ..selection.paths.consumers import measured_consumers
from ..text import listed, table
from .channel_similarity import angular_order, correlate, emulation_errors
from .similarity_figure import Similarity, write_similarity

ALIKE = 0.9
"""Magnitude of a correlation above which two channels count as alike."""


class Pair(NamedTuple):
    """A unit, and another unit that could emulate it; both are row numbers of the tables in :class:`Behaviors`.

    Attributes:
        removed: The unit that would leave.
        partner: The unit that would emulate it.
        error: Error of the emulation, as in ``Behaviors.errors``.
        correlation: Correlation of the two behaviours.
    """

    removed: int
    partner: int
    error: float
    correlation: float


@dataclass(frozen=True, eq=False)
class Behaviors:
    """How similarly the output channels of one layer behave; ``print`` it, or ``plot`` it.

    Tables have one row for each unit of the layer's channel group. A unit is one channel, or several that leave
    together.

    Attributes:
        layer: Name of the layer.
        group: Name of its channel group.
        readers: Names of the group's consumers, whose inputs are compared.
        others: Lines on the layer's channels that are not compared: one line for each other group, and one for each
            reason why channels are frozen.
        channels: (units, count) int64, the layer's output channels in each unit.
        correlation: (units, units) float64 in [-1, 1], correlations of behaviours; 0 for dead units.
        errors: (units, units) float64, the share of a consumer's output variance that is lost where the column's unit
            emulates the row's, with the consumer's best gain, averaged over consumers; inf on the diagonal. For a
            consumer without an intercept it is the share of the outputs' mean square.
        order: (units,) int64, an order in which similar units are neighbours; dead units come last.
        dead: (count,) int64, units whose value is constant up to float32 rounding. Removing a dead unit of nonzero
            value is not free where a convolution zero-pads it, since it differs at the border.
        images: Number of images.
        positions: Number of random positions compared in each feature map; None for all.
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
        """The pairs with the smallest errors, in ascending order of errors.

        All of them can be applied together: no unit leaves twice, and no unit that emulates another leaves.

        Args:
            count: Largest number of pairs.
        """
        size = len(self.errors)
        flat = self.errors.flatten()
        removed: set[int] = set()
        partners: set[int] = set()
        found: list[Pair] = []
        for index in flat.argsort(stable=True).tolist():
            unit, partner = divmod(index, size)
            error = float(flat[index])
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
        """One line on what was compared."""
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
        """Draw the correlations and the errors of all pairs, with similar units next to each other.

        Args:
            path: File to write, ``.png`` or ``.svg``; its folder is created if it does not exist.

        Returns:
            The path.

        Raises:
            InputError: the path has another suffix.
            ReapxError: matplotlib is not installed.
        """
        return write_similarity(self._picture(), path)

    def _picture(self) -> Similarity:
        order, dead = self.order, len(self.dead)
        title = self.title + (f"; {dead} never change{'s' if dead == 1 else ''} (last)" if dead else "")
        labels = [self.label(unit) for unit in order.tolist()]
        tables = (table[order][:, order].numpy() for table in (self.correlation, self.errors))
        return Similarity(title, labels, *tables)


@plain_mode()
def behaviors(
    model: nn.Module,
    images: object,
    layer: str,
    *,
    positions: int | None = None,
    memory: int | None = None,
    progress: bool | None = None,
) -> Behaviors:
    """Compare the output channels of one layer by their values on images; the model is not changed.

    The values are those that the consumers read, after norm and activation. Where a consumer zero-pads its input, only
    the middle tap of its kernel is used, since the other taps also read the padding.

    Args:
        model: Module in eval mode.
        images: A tensor (images, ...) or an iterable of batches, as for ``reapx.plan``.
        layer: Name of a layer; or name of a group in ``reapx.inspect(model, images).groups``, where the layer's
            channels are in several groups. A name that is both means the group.
        positions: Number of random positions to compare in each feature map, the same on every run; None for all.
            Vectors and tokens are compared at all positions.
        memory: Bytes of the device's memory for images before they move to disk, as for ``reapx.plan``.
        progress: Whether to show a progress bar; by default if stderr is a terminal.

    Returns:
        Correlations, errors of emulation and an order of the channels.

    Raises:
        InputError: images cannot be used, there is only one value per channel, the model is in train mode,
            ``positions`` is not a whole number from 1, no layer has this name, its channels are frozen, or they are in
            several groups.
        CaptureError: torch.export refuses the model, or the model fixes its batch size.
        NumericalError: an activation is NaN or infinite.
        BackendError: there are no kernels for the model's device.
    """
    if not isinstance(layer, str):
        raise InputError(f"layer is a {type(layer).__name__}: give a layer's name, as in model.named_modules()")
    check_arguments(positions=positions, progress=progress)
    found = inspect(model, images, memory=memory)
    group, own, others = _find(found, layer)
    graph = found._graph
    moments = measure_consumers(graph, found._images, [group], positions=positions, progress=progress_of(progress))
    if max(parts[0].rows for parts in moments.values()) < 2:
        raise InputError("one image gives each channel a single value, which cannot be compared: give more images")
    dead, correlation = correlate(group.consumers, moments)
    sampled = positions is not None and any(_positions(graph, c.layer) > positions for c in group.consumers)
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


def _positions(graph: Graph, layer: Layer) -> int:
    """Number of positions of a layer's output that can be sampled; 1 for vectors and tokens."""
    return math.prod(graph.shape(layer.node)[2:]) if layer.spatial else 1


def _find(found: Inspection, name: str) -> tuple[Group, Layer, list[str]]:
    """The group that a name means, the layer of that name in it, and a line on each of the layer's other channels."""
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
    other_groups = [f"{g.cuts[layer.weight, layer.out_axis].size} channels in the group {g.name}" for g in other]
    stay = [f"{entry.channels} channels stay: {entry.reason}" for entry in found.frozen if entry.layer == layer.name]
    return group, layer, other_groups + stay


def _refusal(found: Inspection, name: str) -> str:
    """The error text for a name that means no group: why, and which names can be used."""
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
