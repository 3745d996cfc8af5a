"""Groups whose channels are also read where only training reads them, by auxiliary heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from ..capture.graph import Graph
from .channel_groups import ChannelAnalysis, Frozen, Group, ParameterAxis, Positions
from .propagation import Propagation


def with_training(channels: ChannelAnalysis, training: Graph, idle: Collection[str]) -> ChannelAnalysis:
    """The groups, each with the positions that it owns in parameters which only training uses.

    These are cut with the channels that they belong to, and are not refitted. A group stays whole where the network in
    train mode puts it out, combines it with others, or uses an operator that is not known.

    Args:
        channels: The analysis of the network in eval mode.
        training: The same network captured in train mode.
        idle: Qualified names of the parameters that only training uses.
    """
    analysis = Propagation(training)
    reasons = analysis.table.frozen_reasons()
    owned = _owned(analysis, idle)
    roots = {group.name: _roots(analysis, group) for group in channels.groups}
    uses = Counter(root for own in roots.values() for root in own)
    groups: list[Group] = []
    frozen = list(channels.frozen)
    for group in channels.groups:
        own = roots[group.name]
        reason = next((reasons[root] for root in own if root in reasons), None)
        cuts = _stacked([owned.get(root, {}) for root in own])
        if reason is None and (cuts is None or any(uses[root] > 1 for root in own)):
            reason = "its channels are combined with others"
        if reason is None and cuts is not None:
            groups.append(replace(group, cuts={**group.cuts, **cuts}))
        else:
            frozen += [Frozen(layer.name, group.size * group.per_unit, f"in train mode: {reason}")
                       for layer in group.producers]  # fmt: skip
    cut = {name for group in groups for name, _ in group.cuts}
    for layer in analysis.layers:
        if layer.weight in idle:
            done = "it loses the channels that it reads, and is not refitted" if layer.weight in cut else "it stays"
            outputs = int(training.tensors[layer.weight].shape[layer.out_axis])
            frozen.append(Frozen(layer.name, outputs, f"only training uses it: {done}"))
    return replace(channels, groups=groups, frozen=frozen)


def _owned(analysis: Propagation, idle: Collection[str]) -> dict[int, dict[ParameterAxis, list[int]]]:
    """Representative of a set of joined channels -> its positions in the parameters that only training uses."""
    owned: dict[int, dict[ParameterAxis, list[int]]] = {}
    for name, layout in analysis.parameters.items():
        for axis, channels in enumerate(layout):
            if name in idle and channels is not None:
                for position, root in enumerate(analysis.table.find(channels).tolist()):
                    owned.setdefault(root, {}).setdefault((name, axis), []).append(position)
    return owned


def _roots(analysis: Propagation, group: Group) -> list[int]:
    """Representative of each of a group's units."""
    layer = group.producers[0]
    channels = analysis.parameters[layer.weight][layer.out_axis]
    assert channels is not None
    first = group.cuts[layer.weight, layer.out_axis][:, 0]
    return [int(root) for root in analysis.table.find(channels[first])]


def _stacked(units: list[dict[ParameterAxis, list[int]]]) -> dict[ParameterAxis, Positions] | None:
    """(units, count) positions on each axis; None if the units own different numbers of them."""
    if len({tuple(sorted((key, len(where)) for key, where in unit.items())) for unit in units}) > 1:
        return None
    return {key: np.array([unit[key] for unit in units], dtype=np.int64) for key in units[0]}
