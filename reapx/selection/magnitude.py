"""Magnitude: the channels with the smallest weights leave first; no data is looked at."""

from __future__ import annotations

import torch
from torch import Tensor

from .path import Path


def magnitude_path(norms: list[Tensor], steps: int) -> Path:
    """Order by the L2 norm of the weights that produce each unit.

    Args:
        norms: Per producer, (units,) squared norms of the units' weights; summed.
        steps: Number of units to remove.

    Returns:
        The order; its errors are NaN.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (there L1).
    """
    order = torch.stack(norms).sum(0).argsort(stable=True)[:steps]
    return Path(order, torch.full((steps,), float("nan"), dtype=torch.float64), float("nan"))
