"""Trial: does the user's forward() really run, and agree, when channels are fewer?

Sizes that forward() writes down as numbers cannot be told from sizes that it computes, so one unit
of every group is removed on a copy and the outcome compared.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from .errors import ProofError
from .graph import Graph
from .groups import Channels, Frozen, Group
from .images import Images
from .proof import TOLERANCE, difference, masked_tensors
from .surgery import cut, kept_positions


def freeze_failing(model: nn.Module, graph: Graph, channels: Channels, images: Images) -> Channels:
    """The channels without the groups whose removal the user's forward() does not survive.

    All groups are tried at once; only if that fails, one after another.
    """
    groups = [group for group in channels.groups if group.size > 1]
    frozen = list(channels.frozen)
    for group in channels.groups:
        if group.size == 1:
            frozen += [Frozen(layer.name, 1, "it is the only one") for layer in group.producers]
    if groups and _failure(model, graph, groups, images) is not None:
        passing: list[Group] = []
        for group in groups:
            failure = _failure(model, graph, [*passing, group], images)
            if failure is None:
                passing.append(group)
            else:
                reason = f"forward() does not work with fewer of these channels: {failure}"
                frozen += [Frozen(layer.name, group.size, reason) for layer in group.producers]
        groups = passing
    return replace(channels, groups=groups, frozen=frozen)


def _failure(model: nn.Module, graph: Graph, groups: list[Group], images: Images) -> str | None:
    """Why removing the last unit of each group fails, or None."""
    removed = {group.name: torch.tensor([group.size - 1]) for group in groups}
    kept = kept_positions(groups, removed, graph.tensors)
    try:
        tried = copy.deepcopy(model)
        cut(tried, kept)
        gap, dtype = difference(tried, graph, masked_tensors(graph, groups, kept, {}), images, 2)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ProofError) as error:
        return " ".join(str(error).split())[:160] or type(error).__name__
    if not gap <= TOLERANCE[dtype]:
        return f"outputs differ by {gap:.0e} (a size or position is written down as a number)"
    return None


def find_droppable(model: nn.Module, graph: Graph, channels: Channels, images: Images) -> frozenset[str]:
    return frozenset()
