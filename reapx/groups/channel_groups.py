"""Channel groups: the units that can be removed, the parameters that shrink with them, and the frozen channels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import Node

from ..capture.graph import Graph
from ..capture.layers import MAX_FEATURES, Layer, can_refit
from .head_axes import find_head_axes
from .propagation import Propagation

Positions = npt.NDArray[np.int64]
ParameterAxis = tuple[str, int]
"""(qualified name of a parameter, axis)."""


@dataclass(frozen=True)
class Consumer:
    """A layer that reads a group's channels, restricted to one of its conv groups.

    Attributes:
        layer: The layer.
        conv_group: Index of the conv group.
        channels: (units, count) int64, the input channels of the conv group that belong to each unit.
    """

    layer: Layer
    conv_group: int
    channels: Positions = field(repr=False)

    def columns(self) -> Tensor:
        """(units, count * taps) int64: the columns of the patch matrix that belong to each unit."""
        taps = self.layer.taps
        columns = self.channels[:, :, None] * taps + np.arange(taps)
        return torch.from_numpy(columns.reshape(len(self.channels), -1))


@dataclass(frozen=True)
class Group:
    """Units with the same producers and consumers; each unit is a set of channels that leave together.

    Attributes:
        name: Names of the producers, ``a + b`` for several; long lists are shortened.
        size: Number of units.
        producers: Layers that write the channels, without depthwise ones.
        consumers: Layers that read the channels.
        cuts: Axis of a parameter -> (units, count) int64, the positions on it that leave with each unit. A parameter
            with several names has an entry for each.
        residual_stream: Whether the channels are a sum of several layers' outputs.
        attention: Product of attention -> how many of its heads each unit is; empty where units are channels.
        numbers: (module path, attribute) of the whole numbers that count the units, or something in each of them; they
            shrink in proportion.
    """

    name: str
    size: int
    producers: tuple[Layer, ...]
    consumers: tuple[Consumer, ...]
    cuts: dict[ParameterAxis, Positions] = field(repr=False)
    residual_stream: bool
    attention: dict[Node, int] = field(default_factory=dict)
    numbers: tuple[tuple[str, str], ...] = ()

    @property
    def per_unit(self) -> int:
        """Number of the first producer's output channels in one unit."""
        layer = self.producers[0]
        return int(self.cuts[layer.weight, layer.out_axis].shape[1])

    @property
    def kind(self) -> str:
        """``"stream"`` for a residual stream, ``"heads"`` of attention, ``"inside"`` for the inside of a block."""
        return "stream" if self.residual_stream else "heads" if self.attention else "inside"

    @property
    def consumer_names(self) -> list[str]:
        """Names of the consumers, each once."""
        return list(dict.fromkeys(consumer.layer.name for consumer in self.consumers))


@dataclass(frozen=True)
class Frozen:
    """Output channels of a layer that cannot be removed.

    Attributes:
        layer: Name of the layer.
        channels: Number of these channels.
        reason: Why they stay.
    """

    layer: str
    channels: int
    reason: str


@dataclass
class ChannelAnalysis:
    """Result of the channel analysis of one graph.

    Attributes:
        groups: Groups in the order of their first producers.
        frozen: Channels that cannot be removed, and why.
        layers: All layers that reapx can measure and refit.
    """

    groups: list[Group]
    frozen: list[Frozen]
    layers: list[Layer]

    def all_producers(self, group: Group) -> list[Layer]:
        """All layers that write a group's channels, including depthwise ones."""
        return [layer for layer in self.layers if (layer.weight, layer.out_axis) in group.cuts]


@dataclass(frozen=True)
class _Unit:
    root: int
    axes: dict[ParameterAxis, Positions]

    @property
    def signature(self) -> tuple[tuple[ParameterAxis, int], ...]:
        return tuple(sorted((key, len(where)) for key, where in self.axes.items()))


def find_groups(graph: Graph, *, measured: bool = True) -> ChannelAnalysis:
    """Find the channel groups of a captured graph.

    Args:
        graph: The captured network.
        measured: Whether the layers will be measured. If so, the inputs of layers with more than ``MAX_FEATURES``
            features are frozen; if not, those of layers that are called several times.

    Returns:
        Groups in the order of their first producers, and the frozen channels of every layer.
    """
    analysis = Propagation(graph, find_head_axes(graph), several_calls=measured)
    reasons = analysis.table.frozen_reasons()
    residual_streams = analysis.table.residual_stream_roots()
    first: dict[str, Layer] = {}
    for layer in analysis.layers:
        first.setdefault(layer.weight, layer)  # it stands for its later calls
    producers = {(layer.weight, layer.out_axis): layer for layer in first.values() if not layer.depthwise}
    consumers = {(layer.weight, layer.in_axis): layer for layer in first.values()}
    classes: dict[tuple[object, ...], list[_Unit]] = {}
    for root, unit in _units(analysis).items():
        if root in reasons or not any(key in producers for key in unit.axes):
            continue
        reason = _unreadable(graph, [consumers[key] for key in unit.axes if key in consumers], measured)
        if reason is None:
            classes.setdefault((unit.signature, root in residual_streams), []).append(unit)
        else:
            reasons[root] = reason
    order = {weight: k for k, weight in enumerate(first)}
    attention = _attention(analysis)
    groups = []
    for key, members in classes.items():
        group = _group(members, bool(key[1]), producers, consumers)
        tied = {(x, axis): where for (name, axis), where in group.cuts.items() for x in graph.aliases(name)}
        groups.append(replace(group, cuts={**group.cuts, **tied}, attention=attention.get(members[0].root, {})))
    groups.sort(key=lambda group: order[group.producers[0].weight])
    frozen = _frozen(analysis, producers, reasons)
    return ChannelAnalysis(_unique_names(groups), frozen, analysis.layers)


def _unreadable(graph: Graph, layers: list[Layer], measured: bool) -> str | None:
    """Why the layers that read a unit cannot be refitted without it; None if they can."""
    if not layers:
        return "no convolution or linear layer reads these channels"
    for layer in layers:
        if not can_refit(graph, layer):
            return f"{layer.name} reads them with a buffer, or with a bias that it shares, which cannot be refitted"
        if measured and layer.features > MAX_FEATURES:
            size = 8e-9 * layer.features**2
            return f"{layer.name} has {layer.features} input features: their Gram matrix would take {size:.1f} GB"
    return None


def _units(analysis: Propagation) -> dict[int, _Unit]:
    """Representative of a set of joined channels -> the unit: the positions of these channels in all parameters."""
    owners: list[ParameterAxis] = []
    rows: list[Positions] = []
    for name, layout in analysis.parameters.items():
        for axis, channels in enumerate(layout):
            if channels is not None:
                rows_owner = np.full(len(channels), len(owners))
                index = np.arange(len(channels))
                rows.append(np.stack([analysis.table.find(channels), rows_owner, index], axis=1))
                owners.append((name, axis))
    if not rows:
        return {}
    table = np.concatenate(rows)
    table = table[np.lexsort((table[:, 2], table[:, 1], table[:, 0]))]
    change = np.any(np.diff(table[:, :2], axis=0) != 0, axis=1)
    bounds = [0, *(np.flatnonzero(change) + 1).tolist(), len(table)]
    units: dict[int, _Unit] = {}
    for start, stop in pairwise(bounds):
        root, owner = int(table[start, 0]), int(table[start, 1])
        unit = units.setdefault(root, _Unit(root, {}))
        unit.axes[owners[owner]] = table[start:stop, 2]
    return units


def _attention(analysis: Propagation) -> dict[int, dict[Node, int]]:
    """Representative of a set of joined channels -> the products of attention whose heads it has, and how many."""
    found: dict[int, dict[Node, int]] = {}
    for node, channels in analysis.attention:
        for root, count in Counter(analysis.table.find(channels).tolist()).items():
            found.setdefault(root, {})[node] = count
    return found


def _group(
    units: list[_Unit],
    residual_stream: bool,
    producing: dict[ParameterAxis, Layer],
    consuming: dict[ParameterAxis, Layer],
) -> Group:
    axes = list(units[0].axes)
    layers = tuple(sorted((producing[p] for p in axes if p in producing), key=_graph_order))
    units = sorted(units, key=lambda unit: int(unit.axes[_output_axis(layers[0])][0]))
    cuts = {key: np.stack([unit.axes[key] for unit in units]) for key in axes}
    consumers: list[Consumer] = []
    for key in axes:
        if key in consuming:
            layer = consuming[key]
            consumers += [Consumer(layer, g, cuts[key]) for g in range(layer.window.groups)]
    consumers.sort(key=lambda consumer: _graph_order(consumer.layer))
    names = [layer.name for layer in layers]
    name = " + ".join(names) if len(names) < 4 else f"{names[0]} + {len(names) - 1} more"
    return Group(name, len(units), layers, tuple(consumers), cuts, residual_stream)


def _output_axis(layer: Layer) -> ParameterAxis:
    return (layer.weight, layer.out_axis)


def _graph_order(layer: Layer) -> int:
    order: int = layer.node.meta["order"]
    return order


def _frozen(analysis: Propagation, producers: dict[ParameterAxis, Layer], reasons: dict[int, str]) -> list[Frozen]:
    found = [Frozen(*refused) for refused in analysis.refused]
    for (weight, axis), layer in producers.items():
        channels = analysis.parameters[weight][axis]
        if channels is None:
            continue
        roots = analysis.table.find(channels).tolist()
        count = Counter(reasons[root] for root in roots if root in reasons)
        found += [Frozen(layer.name, number, reason) for reason, number in count.items()]
    return found


def _unique_names(groups: list[Group]) -> list[Group]:
    seen: Counter[str] = Counter()
    named = []
    for group in groups:
        seen[group.name] += 1
        if seen[group.name] > 1:
            group = replace(group, name=f"{group.name} #{seen[group.name]}")
        named.append(group)
    return named
