"""Zero-node scanning of a whole model against torch, next to the copy bandwidth."""

from __future__ import annotations

import torch
from peak import Amount
from rows import Row
from timing import Target, interleaved
from torch import Tensor

from reapx import _native

CONVOLUTIONS = [(64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (256, 256), (512, 256)]
LINEAR = [(4096, 25088), (4096, 4096), (1000, 4096)]


def vgg16(target: Target, quick: bool) -> list[Tensor]:
    """Weights of the ImageNet network, 138 M of them, random."""
    shapes = [(*pair, 3, 3) for pair in [*CONVOLUTIONS, *5 * [(512, 512)]]]
    shapes = shapes[:2] if quick else [*shapes, *LINEAR]
    return [torch.randn(shape, device=target.device) for shape in shapes]


def rows(target: Target, quick: bool) -> list[Row]:
    """One row: incoming and outgoing maxima of every layer."""
    weights = vgg16(target, quick)
    weights[0][3] = 0.0
    for (own_rows, own_columns), (want_rows, want_columns) in zip(
        _native.zero_scan(weights), _torch(weights), strict=True
    ):
        if not (torch.equal(own_rows, want_rows) and torch.equal(own_columns, want_columns)):
            raise AssertionError("the maxima differ from torch's")
    ours, theirs = interleaved([lambda: _native.zero_scan(weights), lambda: _torch(weights)], 2 if quick else 9, target)
    size = sum(weight.numel() for weight in weights)
    amount = Amount(copy=4 * size / 1e9)  # which are only read
    case = f"VGG16, {size / 1e6:.0f} M weights"
    return [Row("zero_scan", case, target, ours, "torch abs, amax", theirs, amount)]


def _torch(weights: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    found = []
    for weight in weights:
        size = weight.flatten(2).abs() if weight.dim() > 2 else weight.abs()[:, :, None]
        found.append((size.amax((1, 2)), size.amax((0, 2))))
    return found
