"""Variants of images for refinement: small shifts, flips and mixtures, of which the original says what they are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

Augment = Callable[[Tensor], Tensor]
"""A function that turns the images of a batch (N, ...) into variants of the same shape and dtype."""

_LARGEST_SHIFT = 1 / 8
"""Of the height and width."""


def varied(images: Tensor) -> Tensor:
    """Each image shifted by up to an eighth of its size, flipped or not, and mixed with another one of the batch.

    A mixture is a * (1 - t) + b * t with t uniform between 0 and 1. No label has to be right for it, since the
    original network says what it makes of the mixture.

    Args:
        images: (N, channels, height, width) floating point.
    """
    moved = _shifted(images)
    share = torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype)
    return torch.lerp(moved, moved.flip(0), share)


def _shifted(images: Tensor) -> Tensor:
    """The edge is repeated where a shift leaves a gap."""
    count, _, height, width = images.shape
    down, across = int(height * _LARGEST_SHIFT), int(width * _LARGEST_SHIFT)
    padded = F.pad(images, (across, across, down, down), mode="replicate").permute(0, 2, 3, 1)
    top = torch.randint(2 * down + 1, (count, 1), device=images.device)
    left = torch.randint(2 * across + 1, (count, 1), device=images.device)
    flipped = torch.rand(count, 1, device=images.device) < 0.5
    columns = torch.arange(width, device=images.device)
    columns = left + torch.where(flipped, width - 1 - columns, columns)
    rows = top + torch.arange(height, device=images.device)
    each = torch.arange(count, device=images.device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def variants(inputs: tuple[Tensor, ...], augment: Augment | None) -> tuple[Tensor, ...]:
    """Variants of one batch; without ``augment``, pictures are varied and other inputs stay as they are.

    Raises:
        InputError: ``augment`` returned something else than tensors of the same shapes and dtypes.
    """
    pictures = [value for value in inputs if value.dim() == 4 and value.is_floating_point()]
    if augment is None:
        if len(pictures) != 1 or len(inputs) != 1 or min(pictures[0].shape[2:]) < 2:
            return inputs
        return (varied(inputs[0]),)
    found = augment(*inputs)
    values = found if isinstance(found, tuple) else (found,)
    for given, value in zip(inputs, values, strict=False):
        if not isinstance(value, Tensor) or value.shape != given.shape or value.dtype != given.dtype:
            kind = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"augment returned {kind} for {tuple(given.shape)} {given.dtype}: return images of the same shape and "
                "dtype"
            )
    if len(values) != len(inputs):
        raise InputError(f"augment returned {len(values)} tensors for {len(inputs)}: return one for each")
    return values


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A block whose random numbers depend on the seed alone; the state outside of it is not touched."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
