"""What crosses from torch to the compiled kernels, and which of their modules takes it.

Only :mod:`reapx._native` uses this. Tensors cross as ``(address, dtype, shape[, strides])``; after them comes
where to work: ``(threads, core)`` on the CPU, ``(device, stream)`` on a GPU.
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
"""What kernels that read images take besides float32."""

# The CUDA kernels compiled for the CPU, which tests ask for by these names; the numbers are the streams, which say
# in which order the emulated threads run.
_EMULATED = {"emulated": 0, "emulated-backward": 1}

_CURES = {
    "cpu": "install reapx with 'pip install .' instead of importing it from its sources",
    "cuda": "install reapx where nvcc is found ('pip install . -C cmake.define.REAPX_CUDA=ON' says if it is not), or "
    "move the model and the images to the CPU: model.cpu()",
    "emulated": "build it with '-C cmake.define.REAPX_EMULATED=ON'",
}


def device_of(named: Iterable[tuple[str, Tensor | None]]) -> torch.device:
    """The one device of all tensors; the CPU when there are none."""
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
    """The module with the kernels for a device, and where they are to work.

    Raises:
        BackendError: there are none.
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
    """One that is there but cannot be loaded raises its own error."""
    try:
        return importlib.import_module(f"reapx._native._{name}")
    except ModuleNotFoundError as error:
        raise BackendError(
            f"the compiled module reapx._native._{name}, which has the {name.upper()} kernels, is missing: "
            f"{_CURES[name]}"
        ) from error


def tensors(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a task or of a list of them, with their names."""
    if isinstance(value, Tensor):
        yield name, value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(f"{name}.{field.name}", getattr(value, field.name))
    elif isinstance(value, Sequence):
        for i, item in enumerate(value):
            yield from tensors(f"{name}[{i}]", item)


def packed(name: str, value: object) -> object:
    """The same as the extension reads it: a tuple of fields for a task, a list for a list."""
    if isinstance(value, Tensor):
        return given(name, value)
    if is_dataclass(value):
        return tuple(packed(f"{name}.{field.name}", getattr(value, field.name)) for field in fields(value))
    if isinstance(value, Sequence):
        return [packed(f"{name}[{i}]", item) for i, item in enumerate(value)]
    return value


def readable(name: str, images: Tensor | None, *, half: bool) -> Tensor | None:
    """Images as a back end reads them: those of half precision become float32 where it reads no ``half``."""
    if images is None or half or images.dtype not in HALF:
        return images
    given(name, images, images=True)  # the same layouts everywhere: the copy's may be another
    return images.detach().float()


def given(name: str, tensor: Tensor, *, images: bool = False) -> Array:
    """One tensor, which must be contiguous, or, as images, may be channels-last."""
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
