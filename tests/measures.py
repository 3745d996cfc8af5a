"""Functions that measure without a clock, as a user may give them to ``reapx.Latency``: the same at every call."""

from __future__ import annotations

import math

from torch import nn

FIXED = 0.1
"""Milliseconds that a network takes whatever its widths, and that no table of layers shows."""


def rounding_up(step: int, module: nn.Module, inputs: object) -> float:
    """As if a device rounded both channel axes of every weight up to multiples of ``step``."""
    weights = [own.shape for own in module.parameters() if own.dim() > 1]
    work = sum(-(-shape[0] // step) * step * (-(-shape[1] // step) * step) * math.prod(shape[2:]) for shape in weights)
    return 1e-5 * work + (FIXED if len(weights) > 1 else 0.001)


def by_weights(module: nn.Module, inputs: object) -> float:
    """As if every weight took equally long."""
    return rounding_up(1, module, inputs)


def in_eights(module: nn.Module, inputs: object) -> float:
    """As if the device worked on eight channels at once."""
    return rounding_up(8, module, inputs)
