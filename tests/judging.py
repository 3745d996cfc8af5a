"""The network that a result's figures are of: the pruned one, fitted without the held-out images."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import reapx
from reapx.removal.remove import Removal, remove


def removal(plan: reapx.Plan, damping: float | None = None, rectify: int = 2) -> Removal:
    """What ``plan.apply`` does in between."""
    removed = {entry.group.name: entry.removed for entry in plan.groups}
    return remove(plan._model, plan.inspection, removed, refit="all", damping=damping, rectify=rectify, changed={})


def judged_network(plan: reapx.Plan, damping: float | None = None, rectify: int = 2) -> nn.Module:
    """The pruned network after the first sweep."""
    done = removal(plan, damping, rectify)
    smaller = copy.deepcopy(plan._model)
    done.shrink(smaller, done.refits.judged)
    return smaller


def moved(model: nn.Module, smaller: nn.Module, images: Tensor) -> float:
    """Squared difference of the outputs as a share of their variance."""
    with torch.no_grad():
        wanted, got = model(images).double(), smaller(images).double()
    return float((wanted - got).square().sum() / (wanted - wanted.mean(0)).square().sum())
