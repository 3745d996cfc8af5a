"""Dry run: check on a copy that the user's forward() runs with fewer channels and gives the right outputs.

The captured graph does not show whether forward() computes a size or fixes it as a number. So one unit of every group
is removed from a copy, and its outputs are compared with those of the masked original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from ..calibration.images import Images
from ..capture.graph import Graph
from ..capture.layers import tail_of
from ..errors import ProofError
from ..groups.channel_groups import ChannelAnalysis, Frozen, Group
from ..surgery.cut import kept_positions
from ..surgery.emptied_layers import find_endings, shrunk_exactly
from ..surgery.proof import TOLERANCE, difference, masked_tensors


def freeze_failing(model: nn.Module, graph: Graph, channels: ChannelAnalysis, images: Images) -> ChannelAnalysis:
    """Freeze the groups without which the user's forward() fails or gives wrong outputs, and groups of a single unit.

    All groups are tried at once. Only if that fails, they are tried one after another.

    Args:
        model: The user's model; only copies are changed.
        graph: The captured model.
        channels: The channel analysis.
        images: Calibration images.

    Returns:
        The channel analysis with these groups frozen.
    """
    groups = [group for group in channels.groups if group.size > 1]
    frozen = list(channels.frozen)
    for group in channels.groups:
        if group.size == 1:
            frozen += [Frozen(layer.name, 1, "it is the only one") for layer in group.producers]
    if groups and _failure(model, graph, groups, images, 1) is not None:
        passing: list[Group] = []
        for group in groups:
            failure = _failure(model, graph, [*passing, group], images, 1)
            if failure is None:
                passing.append(group)
            else:
                reason = f"forward() does not work with fewer of these channels: {failure}"
                frozen += [Frozen(layer.name, group.size, reason) for layer in group.producers]
        groups = passing
    return replace(channels, groups=groups, frozen=frozen)


def _failure(
    model: nn.Module, graph: Graph, groups: Sequence[Group], images: Images, count: int | None = None
) -> str | None:
    """Why removing the last ``count`` units of each group (by default all) fails; None if it works."""
    removed = {group.name: torch.arange(group.size)[-(count or group.size) :] for group in groups}
    kept = kept_positions(groups, removed, graph.tensors)
    try:
        tried = shrunk_exactly(model, kept, {}, find_endings(graph, groups, kept))
        gap, dtype = difference(tried, graph, masked_tensors(graph, groups, kept, {}), images, 2)
    except torch.OutOfMemoryError:  # not caused by the channels
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError, ProofError) as error:
        return " ".join(str(error).split())[:160] or type(error).__name__
    if not gap <= TOLERANCE[dtype]:
        return f"outputs differ by {gap:.0e} (a size or position is written down as a number)"
    return None


def find_droppable(model: nn.Module, graph: Graph, channels: ChannelAnalysis, images: Images) -> frozenset[str]:
    """Names of the groups that may leave as a whole, since the residual branch then adds only a constant.

    A group inside a branch qualifies if one of its consumers ends in a residual add, or produces a group that
    qualifies, and if the user's forward() works without the group. All groups are tried at once. Only if that fails,
    they are tried one after another.
    """
    ends: list[Group] = []
    before: list[Group] = []
    weights: set[str] = set()
    for group in reversed(channels.groups):
        consuming = [consumer.layer for consumer in group.consumers]
        if group.residual_stream or not consuming:
            continue
        if any(tail_of(graph, layer).total is not None for layer in consuming):
            ends.append(group)
        elif any(layer.weight in weights for layer in consuming):
            before.append(group)
        else:
            continue
        weights.update(layer.weight for layer in group.producers)
    both = [*ends, *before]
    trials = [both, before] if before else [both]
    if all(_failure(model, graph, tried, images) is None for tried in trials if tried):
        return frozenset(group.name for group in both)
    passing: list[Group] = []
    for group in both:
        if all(_failure(model, graph, tried, images) is None for tried in ([group], [*passing, group])):
            passing.append(group)
    return frozenset(group.name for group in passing)
