"""What crosses from torch to the compiled kernels, and which of their modules takes it.

Only :mod:`reapx._native` uses this module. A tensor crosses as ``(address, dtype, shape)``, an image tensor as
``(address, dtype, shape, strides)``. The last argument of a kernel says where it works: ``(threads, core)`` on the
CPU, ``(device, stream)`` on a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import BackendError

if TYPE_CHECKING:
    from ._cpu import Array, Where

__all__ = ["HALF", "backend", "device_of", "given", "packed", "readable", "tensors"]

HALF = (torch.float16, torch.bfloat16)
"""Dtypes that the kernels which read images take besides float32."""

# Tests ask by these names for the CUDA kernels compiled for the CPU. The numbers stand for the stream and decide the
# order in which the emulated threads run.
_EMULATED = {"emulated": 0, "emulated-backward": 1}

_CURES = {
    "cpu": "install reapx with 'pip install .' instead of importing it from its sources",
    "cuda": "install reapx where nvcc is found ('pip install . -C cmake.define.REAPX_CUDA=ON' says if it is not), or "
    "move the model and the images to the CPU: model.cpu()",
    "emulated": "build it with '-C cmake.define.REAPX_EMULATED=ON'",
}


def device_of(named: Iterable[tuple[str, Tensor | None]]) -> torch.device:
    """The device that all tensors are on; the CPU when there are none.

    Args:
        named: (name, tensor) pairs; None is skipped.

    Raises:
        ValueError: two tensors are on different devices; the message names both.
    """
    first: tuple[str, torch.device] | None = None
    for name, tensor in named:
        if tensor is None:
            continue
        if first is None:
            first = (name, tensor.device)
        elif tensor.device != first[1]:
            raise ValueError(f"{first[0]} is on {first[1]} but {name} is on {tensor.device}")
    return torch.device("cpu") if first is None else first[1]


def backend(device: torch.device, core: str = "") -> tuple[ModuleType, Where]:
    """The extension module with the kernels for a device, and the argument that tells them where to work.

    Args:
        device: Device of the tensors.
        core: Name of an instruction set of the CPU, or of an emulated device; "" for the best instruction set.

    Raises:
        BackendError: this build has no kernels for the device.
        ValueError: ``core`` is given for tensors that are not on the CPU.
    """
    if device.type == "cpu":
        if core in _EMULATED:
            return _module("emulated"), (0, _EMULATED[core])
        return _module("cpu"), (torch.get_num_threads(), core)
    if device.type != "cuda":
        raise BackendError(
            f"the tensors are on '{device}', and reapx has no {device.type.upper()} kernels in this "
            "build: move the model and the images to the CPU"
        )
    if core:
        raise ValueError(f"core: '{core}' is for tensors on the CPU; these are on '{device}'")
    module = _module("cuda")
    stream = torch.cuda.current_stream(device)
    return module, (stream.device_index, stream.cuda_stream)


def _module(name: str) -> ModuleType:
    """Import an extension module. A module that exists but cannot be loaded raises its own ImportError."""
    try:
        return importlib.import_module(f"reapx._native._{name}")
    except ModuleNotFoundError as error:
        raise BackendError(
            f"the compiled module reapx._native._{name}, which has the {name.upper()} kernels, is missing: "
            f"{_CURES[name]}"
        ) from error


def tensors(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a task, or of a list of tasks or tensors, with their names for error messages."""
    if isinstance(value, Tensor):
        yield name, value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(f"{name}.{field.name}", getattr(value, field.name))
    elif isinstance(value, Sequence):
        for i, item in enumerate(value):
            yield from tensors(f"{name}[{i}]", item)


def packed(name: str, value: object) -> object:
    """The value in the form that the extension reads: a task becomes a tuple of its fields, a sequence a list."""
    if isinstance(value, Tensor):
        return given(name, value)
    if is_dataclass(value):
        return tuple(packed(f"{name}.{field.name}", getattr(value, field.name)) for field in fields(value))
    if isinstance(value, Sequence):
        return [packed(f"{name}[{i}]", item) for i, item in enumerate(value)]
    return value


def readable(name: str, images: Tensor | None, *, half: bool) -> Tensor | None:
    """Images in a dtype that the back end reads: half precision is copied to float32 unless it reads ``half``."""
    if images is None or half or images.dtype not in HALF:
        return images
    given(name, images, images=True)  # check the layout before the copy changes it
    return images.detach().float()


def given(name: str, tensor: Tensor, *, images: bool = False) -> Array:
    """One tensor as ``(address, dtype, shape)``; with ``images`` its strides follow.

    Raises:
        ValueError: the tensor is not contiguous; a 4-d image tensor may also be channels-last.
    """
    tensor = tensor.detach()
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    if not images:
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous; its strides are {tensor.stride()}")
        return (tensor.data_ptr(), dtype, shape)
    if tensor.dim() == 4 and not (tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)):
        raise ValueError(f"{name} must be contiguous or channels-last; its strides are {tensor.stride()}")
    return (tensor.data_ptr(), dtype, shape, tuple(tensor.stride()))
