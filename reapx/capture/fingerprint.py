"""Fingerprints of tensors: a plan is of use only for the values that it was measured on."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> whole numbers of the same size."""


def fingerprint_of(tensor: Tensor) -> int:
    """Fingerprint of a tensor's dtype, shape and values, however it lies in memory.

    On the CPU it is a CRC-32, which takes 60 ms for 100 MB. Elsewhere it is a sum over the values' bits, mixed with
    their positions, which is computed where the tensor is, so that one number is copied. Both see what counts of writes
    miss, such as ``parameter.data.mul_(2)``.
    """
    head = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    values = tensor.detach()
    values = (torch.view_as_real(values) if values.is_complex() else values).contiguous().reshape(-1)
    if values.device.type == "cpu":
        return zlib.crc32(values.view(torch.uint8).numpy().data, head)
    words = values.view(_WORDS[values.element_size()]).to(torch.int64)
    index = torch.arange(len(words), dtype=torch.int64, device=words.device)
    mixed = words * 6364136223846793005 + index * 1442695040888963407  # whole numbers wrap around
    mixed = (mixed ^ (mixed >> 29)) * 3202034522624059733
    return zlib.crc32(int((mixed ^ (mixed >> 32)).sum()).to_bytes(8, "little", signed=True), head)


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Name -> fingerprint of each tensor."""
    return {name: fingerprint_of(tensor) for name, tensor in tensors.items()}
