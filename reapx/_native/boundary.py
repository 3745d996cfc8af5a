"""What crosses from torch to the compiled kernels, and which of their modules takes it.

Nothing in the package but :mod:`reapx._native` uses this. Tensors cross as ``(address, dtype, shape[, strides])``.
After them comes where to work: ``(threads, core)`` on the CPU, ``(device, stream)`` on a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import BackendError

if TYPE_CHECKING:
    from ._cpu import Array, Where

__all__ = ["BACK_ENDS", "HALF", "BackEnd", "backend", "device_of", "given", "packed", "readable", "tensors"]

HALF = (torch.float16, torch.bfloat16)
"""The dtypes that kernels which read images take besides float32."""


@dataclass(frozen=True)
class BackEnd:
    """A compiled module that has all kernels.

    Attributes:
        name: What errors call it.
        module: The name to import it by.
        where: From the tensors' device and the core that was asked for, the ``where`` that its functions take.
        cure: What to do where the module is missing.
    """

    name: str
    module: str
    where: Callable[[torch.device, str], Where]
    cure: str


def _threads_and_core(device: torch.device, core: str) -> Where:
    return torch.get_num_threads(), core


def _device_and_stream(device: torch.device, core: str) -> Where:
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


BACK_ENDS = {
    ("cpu", ""): BackEnd(
        name="CPU",
        module="reapx._native._cpu",
        where=_threads_and_core,
        cure="install reapx with 'pip install .' instead of importing it from its sources",
    ),
    ("cuda", ""): BackEnd(
        name="CUDA",
        module="reapx._native._cuda",
        where=_device_and_stream,
        cure="install reapx where nvcc is found ('pip install . -C cmake.define.REAPX_CUDA=ON' says if it is not), or "
        "move the model and the images to the CPU: model.cpu()",
    ),
}
"""The back ends, by type of device and core; the core "" is for every core that has no entry of its own.

:func:`backend` looks here at each call, so an entry for another device or core is all that another back end needs.
"""


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
        BackendError: No back end is known for the device, or its module is missing.
        ValueError: A core was named for tensors that are not on the CPU.
    """
    found = BACK_ENDS.get((device.type, core)) or BACK_ENDS.get((device.type, ""))
    if found is None:
        raise BackendError(
            f"the tensors are on '{device}', and reapx has no {device.type.upper()} kernels in this "
            "build: move the model and the images to the CPU"
        )
    if core and device.type != "cpu" and (device.type, core) not in BACK_ENDS:
        raise ValueError(f"core: '{core}' is for tensors on the CPU; these are on '{device}'")
    module = _module(found)  # first, since a machine without the module may have no such device either
    return module, found.where(device, core)


def _module(found: BackEnd) -> ModuleType:
    """One that is there but cannot be loaded raises its own error."""
    try:
        return importlib.import_module(found.module)
    except ModuleNotFoundError as error:
        raise BackendError(
            f"the compiled module {found.module}, which has the {found.name} kernels, is missing: {found.cure}"
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
    """A value as the extension reads it: a tuple of fields for a task, a list for a list."""
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
