"""Images of other sizes, made of the calibration images, to see what a network computes of those."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

IMAGES = 3
"""Images in a batch; others than those that a network is captured and first proved with."""
POSITIONS = 128**2
"""Images of more positions are not made twice as large."""

Example = tuple[Tensor, ...]


def other_sizes(example: Sequence[Tensor]) -> list[list[Example]]:
    """Batches of half and of twice the height and width, or length; positions are left out, or repeated.

    Args:
        example: One batch, in the order of the model's arguments.

    Returns:
        A list for each size. It holds one batch for each axis that could be the one of positions: of three axes, they
        may be the last, or that of tokens. None for vectors, which have no positions.
    """
    rank = max(value.dim() for value in example)
    largest = next(value for value in example if value.dim() == rank)
    if rank > 3:
        choices = [tuple(range(2, rank))]
    elif rank == 3:
        choices = [(2,), (1,)]
    else:
        choices = [(1,)] if rank == 2 and not largest.is_floating_point() else []
    found = []
    for factor in (0.5, 2.0):
        batches = []
        for axes in choices:
            sizes = {axis: int(largest.shape[axis] * factor) for axis in axes}
            if min(sizes.values()) > 0 and (factor < 1 or math.prod(sizes.values()) <= POSITIONS):
                batches.append(tuple(_resized(value, largest, sizes) for value in example))
        if batches:
            found.append(batches)
    return found


def other_count(example: Sequence[Tensor]) -> Example:
    """The same images, another number of them."""
    return tuple(_taken(value, 0, IMAGES) for value in example)


def _resized(value: Tensor, largest: Tensor, sizes: dict[int, int]) -> Tensor:
    """Another size along the axes that a tensor has in common with the largest."""
    for axis, size in sizes.items():
        if axis < value.dim() and value.shape[axis] == largest.shape[axis]:
            value = _taken(value, axis, size)
    return _taken(value, 0, IMAGES)


def _taken(value: Tensor, axis: int, size: int) -> Tensor:
    return value.index_select(axis, torch.arange(size, device=value.device) % value.shape[axis])
