"""Micro networks: one for every operator and coupling that users' models have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Case:
    """A network, the shape of one input, and what the analysis must find.

    Attributes:
        groups: Producer of each prunable group -> number of its units.
        frozen: Words that must occur in a reason why something stays.
        budget: Fraction of the MACs that can be reached.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: dict[str, int]
    frozen: str = "output of the model"
    budget: float = 0.7


def lively(model: nn.Module) -> nn.Module:
    """Norm statistics and affine parameters that are not all alike, so that mistakes show."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
            if module.weight is None:
                continue
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.2, 0.2, generator=generator)
    return model.eval()
