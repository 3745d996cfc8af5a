"""Gram matrices of convolutions' patches and of linear layers against products in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from baselines import unfolded_gram
from peak import Amount
from rows import Row
from shifted import correlated_gflop, correlated_gram, sliced_gflop, sliced_gram
from timing import HOST, Target, interleaved
from torch import Tensor

from reapx import _native
from reapx._native import Window

SHAPES = [(64, 32, 32, 32), (64, 64, 32, 32), (64, 128, 16, 16), (64, 256, 8, 8), (16, 512, 14, 14)]
CUDA_SHAPES = [
    (256, 64, 32, 32), (256, 128, 16, 16), (256, 256, 8, 8), (256, 512, 4, 4),
    (128, 64, 56, 56), (128, 128, 56, 56), (128, 256, 28, 28), (128, 512, 14, 14),
]  # fmt: skip
QUICK = [(4, 16, 9, 9)]
LINEAR, CUDA_LINEAR = [(5120, 2304)], [(5120, 2304), (32768, 4096)]
CONV = Window((3, 3), padding=(1, 1))
TOLERANCE = 1e-4
"""Of the largest entry: what neither side may be off by."""


@dataclass(frozen=True)
class Rival:
    """Another way to the Gram matrix of a 3x3 convolution; ``gflop`` is what it multiplies and adds."""

    name: str
    call: Callable[[Tensor], Tensor]
    gflop: Callable[[int, int, int, int], float]


UNFOLD = Rival(
    "torch unfold, product",
    lambda x: unfolded_gram(x, CONV),
    lambda images, channels, height, width: 2e-9 * 81 * channels**2 * images * height * width,
)
SHIFTED = [
    Rival("torch shifted copies, 45 blocks", sliced_gram, sliced_gflop),
    Rival("torch shifted views, 13 products", correlated_gram, correlated_gflop),
]


def accumulate(x: Tensor, window: Window, size: tuple[int, int], gram: Tensor, total: Tensor) -> None:
    """Ours: adds to ``gram`` (1, D, D) and ``total`` (1, D)."""
    _native.gram_accumulate(x, window, size, gram, total)


def sums_for(features: int, target: Target = HOST) -> tuple[Tensor, Tensor]:
    """Zeroed outputs."""
    given = {"dtype": torch.float64, "device": target.device}
    return torch.zeros(1, features, features, **given), torch.zeros(1, features, **given)


def conv_flops(images: int, channels: int, height: int, width: int) -> float:
    """Floating point operations of the shift-structured form, 3x3 with padding 1.

    13 correlations of whole maps at the shifts that lie at or behind zero, each over the positions where both
    operands are inside; zero shift is symmetric; less the products of border rows, border columns and corners.
    That is what has to be done, about 12.5 products (C, C) a position; unfold and one product do 81.
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


def rows(target: Target, quick: bool) -> list[Row]:
    """For each shape a row for each rival, which on the CPU is unfold; then linear layers.

    Ours adds to the upper triangle in float64; ``gram_mirror``, once after the last batch, is not in its time.
    """
    rounds = 2 if quick else 7
    shapes, linear = (CUDA_SHAPES, CUDA_LINEAR) if target.cuda else (SHAPES, LINEAR)
    rivals = [UNFOLD, *SHIFTED] if target.cuda or quick else [UNFOLD]
    result = []
    for shape in QUICK if quick else shapes:
        result += _conv(shape, rivals, target, rounds)
    return result + [_linear(*size, target, rounds) for size in ([(100, 40)] if quick else linear)]


def _conv(shape: tuple[int, int, int, int], rivals: list[Rival], target: Target, rounds: int) -> list[Row]:
    x = torch.randn(shape, device=target.device).relu()
    images, channels, height, width = shape
    gram, total = sums_for(9 * channels, target)

    def ours() -> None:
        accumulate(x, CONV, (height, width), gram, total)

    ours()
    _native.gram_mirror(gram)
    exact = sum(unfolded_gram(part.double(), CONV) for part in x.split(16))
    error = _error(gram[0], exact, f"reapx, {shape}")
    errors = [_error(rival.call(x), exact, f"{rival.name}, {shape}") for rival in rivals]
    del exact
    seconds, *others = interleaved([ours, *(lambda call=rival.call: call(x) for rival in rivals)], rounds, target)
    amount = Amount(float32=conv_flops(images, channels, height, width) / 1e9)
    return [
        Row("Gram 3x3", str(shape), target, seconds, rival.name, theirs, amount, False, rival.gflop(*shape), error, off)
        for rival, theirs, off in zip(rivals, others, errors, strict=True)
    ]


def _error(found: Tensor, exact: Tensor, case: str) -> float:
    """Largest difference over the largest entry."""
    error = float((found - exact).abs().max() / exact.abs().max())
    if error > TOLERANCE:
        raise AssertionError(f"Gram matrix of {case} is off by {error:.1e}")
    return error


def _linear(samples: int, features: int, target: Target, rounds: int) -> Row:
    x = torch.randn(samples, features, device=target.device)
    gram, total = sums_for(features, target)
    images, case = x[:, :, None, None], f"({samples}, {features})"

    def ours() -> None:
        accumulate(images, Window(), (1, 1), gram, total)

    ours()
    _native.gram_mirror(gram)
    exact = x.double().T @ x.double()
    error, off = _error(gram[0], exact, f"reapx, {case}"), _error(x.T @ x, exact, f"torch, {case}")
    seconds, theirs = interleaved([ours, lambda: x.T @ x], rounds, target)
    amount = Amount(float32=samples * features * (features + 1.0) / 1e9)
    gflop = 2e-9 * samples * features**2
    return Row("Gram linear", case, target, seconds, "torch product", theirs, amount, False, gflop, error, off)
