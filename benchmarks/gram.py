"""Gram matrices of convolutions' patches and of linear layers against unfold and one product in torch."""

from __future__ import annotations

import torch
from baselines import unfolded_gram
from peak import Amount
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


def rows(threads: int, quick: bool) -> list[Row]:
    """One row for each shape, and one for a linear layer.

    Ours adds to the upper triangle in float64; ``gram_mirror``, once after the last batch, is not in its time.
    """
    result = [_conv(shape, threads, 2 if quick else 7) for shape in (QUICK if quick else SHAPES)]
    result.append(_linear(100 if quick else 5120, 40 if quick else 2304, threads, 2 if quick else 7))
    return result


def _check(gram: Tensor, want: Tensor, case: str) -> None:
    _native.gram_mirror(gram)
    error = float((gram[0] - want).abs().max() / want.abs().max())
    if error > 1e-4:
        raise AssertionError(f"Gram matrix of {case} is off by {error:.1e}")


def _conv(shape: tuple[int, int, int, int], threads: int, rounds: int) -> Row:
    x = torch.randn(shape).relu()
    images, channels, height, width = shape
    gram, total = sums_for(9 * channels)
    accumulate(x, CONV, (height, width), gram, total)
    _check(gram, unfolded_gram(x, CONV), str(shape))
    ours, theirs = interleaved(
        [lambda: accumulate(x, CONV, (height, width), gram, total), lambda: unfolded_gram(x, CONV)], rounds
    )
    amount = Amount(float32=conv_flops(images, channels, height, width) / 1e9)
    return Row("Gram 3x3", str(shape), threads, ours, "torch unfold, product", theirs, amount)


def _linear(samples: int, features: int, threads: int, rounds: int) -> Row:
    x = torch.randn(samples, features)
    gram, total = sums_for(features)
    images = x[:, :, None, None]
    accumulate(images, Window(), (1, 1), gram, total)
    _check(gram, x.T @ x, f"({samples}, {features})")
    ours, theirs = interleaved([lambda: accumulate(images, Window(), (1, 1), gram, total), lambda: x.T @ x], rounds)
    amount = Amount(float32=samples * features * (features + 1.0) / 1e9)
    return Row("Gram linear", f"({samples}, {features})", threads, ours, "torch product", theirs, amount)
