"""Elimination: dead nodes leave a network's tensors, round after round, until no further node is dead."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...capture.graph import Graph
from ...groups.channel_groups import ChannelAnalysis, Group
from .folding import Tensors, Verdict, fold, judge, read
from .node_sizes import NodeSizes, ZeroLimits, limits_of, sizes_of, without_zeros
from .views import View, known_constants


@dataclass(frozen=True)
class Elimination:
    """The units that can leave a network.

    Attributes:
        removed: Name of each group -> (count,) int64 units that leave.
        constant: Name of each group -> number of these units with a nonzero constant output.
        staying: Name of each group -> dead unit that stays -> why.
        changed: Qualified name -> float64 tensor of full size that replaces the network's own.
        sizes: Node sizes of each layer before the first round.
        limits: Limits of each layer up to which nodes count as zero.
    """

    removed: dict[str, Tensor]
    constant: dict[str, int]
    staying: dict[str, dict[int, str]]
    changed: Tensors
    sizes: list[NodeSizes]
    limits: list[ZeroLimits]


def eliminate(
    views: Sequence[View], channels: ChannelAnalysis, droppable: Collection[str], relative: float, absolute: float
) -> Elimination:
    """Find all units that can leave without changing the network's function.

    Each round may make further units dead. A unit that only removed units read is unread afterwards, and a unit that
    read only removed units is then the same for all images.

    Args:
        views: The captured network, and the same captured at other image sizes.
        channels: Its channel analysis.
        droppable: Names of groups that may leave as a whole.
        relative: Share of a layer's largest node size up to which a node's weights count as zero.
        absolute: Magnitude up to which weights count as zero in every layer.
    """
    graph = views[0].graph
    tensors = dict(graph.tensors)
    sizes = sizes_of(graph, channels.layers, tensors)
    limits = [limits_of(own, relative, absolute) for own in sizes]
    found = Elimination({}, {}, {}, {}, sizes, limits)
    for group in channels.groups:
        found.removed[group.name], found.constant[group.name] = torch.empty(0, dtype=torch.int64), 0
    wanted = {consumer.layer.node for group in channels.groups for consumer in group.consumers}
    while True:
        for layer, own, limit in zip(channels.layers, sizes, limits, strict=True):
            if layer.weight not in graph.shared:
                tensors[layer.weight] = without_zeros(layer, tensors[layer.weight], own, limit)
        values = known_constants(views, tensors, wanted)
        rounds = [_round(graph, group, found, tensors, values, group.name in droppable) for group in channels.groups]
        pairs = zip(channels.groups, rounds, strict=True)
        leaving = [(group, verdict.removable) for group, verdict in pairs if len(verdict.removable)]
        if not leaving:
            return found
        for group, units in leaving:
            for layer in channels.all_producers(group):
                rows = torch.from_numpy(group.cuts[layer.weight, layer.out_axis])[units].flatten()
                weight = tensors[layer.weight]
                tensors[layer.weight] = weight.index_fill(layer.out_axis, rows.to(weight.device), 0)
        sizes = sizes_of(graph, channels.layers, tensors)


def _round(
    graph: Graph,
    group: Group,
    found: Elimination,
    tensors: Tensors,
    values: dict[torch.fx.Node, Tensor],
    droppable: bool,
) -> Verdict:
    """Remove a group's newly dead units from ``tensors``, and record them in ``found``."""
    before = found.removed[group.name]
    readings = read(group, tensors, values)
    verdict = judge(graph, group, readings, before, droppable)
    for target in (tensors, found.changed) if len(verdict.removable) else ():
        target.update(fold(graph, group, readings, verdict, {**graph.tensors, **target}))
    found.removed[group.name] = torch.cat([before, verdict.removable]).sort().values
    found.constant[group.name] += verdict.constant
    found.staying[group.name] = verdict.staying
    return verdict
