"""Gram matrices of convolutions' patches and of linear layers against unfold and one product in torch."""

from __future__ import annotations

import torch
from baselines import unfolded_gram
from peak import Peak
from rows import Row
from timing import interleaved
from torch import Tensor

from reapx import _native
from reapx._native import Window

SHAPES = [(64, 32, 32, 32), (64, 64, 32, 32), (64, 128, 16, 16), (64, 256, 8, 8), (16, 512, 14, 14)]
QUICK = [(4, 16, 9, 9)]
CONV = Window((3, 3), padding=(1, 1))


def accumulate(x: Tensor, window: Window, size: tuple[int, int], gram: Tensor, total: Tensor) -> None:
    """Ours: adds to ``gram`` (1, D, D) and ``total`` (1, D)."""
    _native.gram_accumulate(x, window, size, gram, total)


def sums_for(features: int) -> tuple[Tensor, Tensor]:
    """Zeroed outputs."""
    gram = torch.zeros(1, features, features, dtype=torch.float64)
    return gram, torch.zeros(1, features, dtype=torch.float64)


def conv_flops(images: int, channels: int, height: int, width: int) -> float:
    """Floating point operations of the shift-structured form, 3x3 with padding 1.

    13 correlations of whole maps at the shifts that lie at or behind zero, each over the positions where both
    operands are inside; zero shift is symmetric; less the products of border rows, border columns and corners.
    """
    positions = 0.0
    for down in range(3):
        for right in range(-2 if down else 0, 3):
            part = (1 + 1 / channels) / 2 if down == right == 0 else 1.0
            positions += part * (height - down) * (width - abs(right))
            positions += part * 2 * (width - right) if down == 0 else 0
            positions += part * 2 * (height - down) if right == 0 else 0
            positions += part * 4 if down == right == 0 else 0
    return 2.0 * positions * images * channels**2


def rows(threads: int, peak: Peak, quick: bool) -> list[Row]:
    """One row for each shape, and one for a linear layer."""
    result = [_conv(shape, threads, peak, 2 if quick else 7) for shape in (QUICK if quick else SHAPES)]
    result.append(_linear(100 if quick else 5120, 40 if quick else 2304, threads, peak, 2 if quick else 7))
    return result


def _conv(shape: tuple[int, int, int, int], threads: int, peak: Peak, rounds: int) -> Row:
    x = torch.randn(shape).relu()
    images, channels, height, width = shape
    gram, total = sums_for(9 * channels)
    accumulate(x, CONV, (height, width), gram, total)
    want = unfolded_gram(x, CONV).double()
    error = float((gram[0] - want).triu().abs().max() / want.abs().max())
    if error > 1e-4:
        raise AssertionError(f"Gram matrix of {shape} is off by {error:.1e}")
    ours, theirs = interleaved(
        [lambda: accumulate(x, CONV, (height, width), gram, total), lambda: unfolded_gram(x, CONV)], rounds
    )
    share = conv_flops(images, channels, height, width) / ours / 1e9 / peak.float32
    return Row("Gram 3x3", str(shape), threads, ours, "torch unfold, product", theirs, share)


def _linear(samples: int, features: int, threads: int, peak: Peak, rounds: int) -> Row:
    x = torch.randn(samples, features)
    gram, total = sums_for(features)
    images = x[:, :, None, None]
    ours, theirs = interleaved([lambda: accumulate(images, Window(), (1, 1), gram, total), lambda: x.T @ x], rounds)
    share = samples * features * (features + 1.0) / ours / 1e9 / peak.float32
    return Row("Gram linear", f"({samples}, {features})", threads, ours, "torch product", theirs, share)
