"""Gram matrices of 3x3 convolutions with padding 1 from products of shifted maps, in plain torch: two ways.

Both start from maps with the channels first, which is a copy, and give the whole float32 matrix, features in the order
of ``F.unfold``: channel, kernel row, kernel column.
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

OFFSETS = list(itertools.product(range(3), range(3)))
SHIFTS = [(0, 0), (0, 1), (0, 2), *((down, right) for down in (1, 2) for right in range(-2, 3))]
"""From one kernel position to another at or behind it: the other 12 are their transposes."""


def sliced_gram(x: Tensor) -> Tensor:
    """Nine shifted copies, each times itself and those behind it: 45 of the 81 blocks (C, C)."""
    channels, (height, width) = x.shape[1], x.shape[2:]
    maps = F.pad(x, (1, 1, 1, 1)).transpose(0, 1)
    views = torch.stack([maps[:, :, row : row + height, column : column + width] for row, column in OFFSETS])
    views = views.flatten(2)
    gram = x.new_empty(9, channels, 9, channels)
    for place in range(9):
        product = views[place] @ views[place:].flatten(0, 1).T
        blocks = product.view(channels, 9 - place, channels)
        gram[place, :, place:] = blocks
        gram[place + 1 :, :, place] = blocks[:, 1:].permute(1, 2, 0)
    return gram.permute(1, 0, 3, 2).reshape(9 * channels, 9 * channels)


def sliced_gflop(images: int, channels: int, height: int, width: int) -> float:
    """What :func:`sliced_gram` multiplies and adds."""
    return 2e-9 * 45 * channels**2 * images * height * width


def correlated_gram(x: Tensor) -> Tensor:
    """13 products of the maps with themselves shifted, without copies: a shift moves the flat, zero-padded map.

    A block is the product at its shift, less what the kernel's position never reads: the last or first row and column
    of the map, whose products at the shift are zero unless the shift stays in them.
    """
    channels = x.shape[1]
    padded = F.pad(x, (0, 2, 0, 2)).transpose(0, 1)  # two zeros behind each row, two rows behind each image
    flat, wide = padded.flatten(1), padded.shape[3]
    height, width = x.shape[2:]
    lines = [padded[:, :, row].flatten(1) for row in (height - 1, 0)]
    lines += [padded[..., column].flatten(1) for column in (width - 1, 0)]
    corners = [x[:, :, row, column].T for row in (height - 1, 0) for column in (width - 1, 0)]
    terms = [_shifted(flat, down * wide + right) for down, right in SHIFTS]
    terms += [_shifted(line, by) for line in lines for by in range(3)]
    terms += [_shifted(corner, 0) for corner in corners]
    parts, first, second = _assembly(x.device)
    blocks = (parts.to(x.dtype) @ torch.stack(terms).flatten(1)).view(-1, channels, channels)
    gram = x.new_empty(9, 9, channels, channels)
    gram[first, second] = blocks
    gram[second, first] = blocks.mT
    return gram.permute(2, 0, 3, 1).reshape(9 * channels, 9 * channels)


def correlated_gflop(images: int, channels: int, height: int, width: int) -> float:
    """What :func:`correlated_gram` multiplies and adds, padding and the sums of terms too."""
    tall, wide = height + 2, width + 2
    positions = images * (13 * tall * wide + 6 * wide + 6 * tall + 4)
    return 2e-9 * channels**2 * (positions + 45 * 29)


def _shifted(maps: Tensor, by: int) -> Tensor:
    return maps[:, : maps.shape[1] - by] @ maps[:, by:].T


@cache
def _assembly(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients (45, 29) of the terms in each block, and the blocks' kernel positions."""
    rows, pairs = [], []
    for (first, here), (second, there) in itertools.product(enumerate(OFFSETS), repeat=2):
        down, right = there[0] - here[0], there[1] - here[1]
        if (down, right) not in SHIFTS:
            continue
        terms = torch.zeros(len(SHIFTS) + 12 + 4)
        terms[SHIFTS.index((down, right))] = 1
        # The edge that a kernel position passes over: the far one at 0, none at 1, the near one at 2.
        edges = [None if place == 1 else place // 2 for place in here]
        if edges[0] is not None and down == 0:
            terms[len(SHIFTS) + 3 * edges[0] + right] = -1
        if edges[1] is not None and right == 0:
            terms[len(SHIFTS) + 6 + 3 * edges[1] + down] = -1
        if None not in edges and down == right == 0:
            terms[len(SHIFTS) + 12 + 2 * edges[0] + edges[1]] = 1
        rows.append(terms)
        pairs.append((first, second))
    first, second = torch.tensor(pairs, device=device).T
    return torch.stack(rows).to(device), first, second
