"""A device that is not there, for code that is to work on a GPU's tensors where no GPU is.

Its tensors compute as the CPU's do, and refuse what a GPU's would refuse: tensors of both devices in one call,
``numpy()``, a generator of the other device. What is copied to the CPU is written down. Kernels are the CUDA
kernels, emulated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import kernels
import pytest
import torch
import torch.utils.backend_registration
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter, tree_map

from reapx._native.boundary import BACK_ENDS

torch.utils.backend_registration._setup_privateuseone_for_python_backend("pretended")
DEVICE = torch.device("pretended", 0)

# A GPU's tensors may be indexed by the CPU's, and copied to and from there.
_TAKES_BOTH = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::copy_")


@dataclass
class Record:
    """What went to the CPU.

    Attributes:
        copies: Bytes of each copy, and the operator that made it.
    """

    copies: list[tuple[int, str]] = field(default_factory=list)

    @property
    def largest(self) -> int:
        """Bytes of the largest copy."""
        return max((size for size, _ in self.copies), default=0)


_record = Record()


class Pretended(Tensor):
    """A tensor on the device; ``inner`` holds its values."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretended:
        made: Pretended = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(operator, args, kwargs or {})

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """The tensor without its history; of what is set, the values count as well as the shape."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = _inner(value)

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        _record.copies.append((self.nbytes, "tolist"))
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert a tensor of this device to numpy: use Tensor.cpu() first")

    __array__ = numpy

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made = memo[id(self)] = _like(self, Pretended(self.inner.clone()))
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.inner})"


def _like(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Pretended) else value


def _call(operator: Any, args: Any, kwargs: Any) -> Any:
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    ours = any(isinstance(value, Pretended) for value in tensors)
    goal = kwargs.get("device")
    lands = ours if goal is None else torch.device(goal).type == DEVICE.type
    _refuse(operator._schema.name, tensors, ours, kwargs.get("generator") if lands else None)
    inner = {**tree_map(_inner, kwargs), **({} if goal is None else {"device": torch.device("cpu")})}
    found = operator(*tree_map(_inner, args), **inner)
    _write_down(operator._schema.name, tensors, ours and not lands)
    if operator._schema.is_mutable:
        return args[0]
    return tree_map(lambda value: Pretended(value) if lands and isinstance(value, Tensor) else value, found)


def _refuse(name: str, tensors: Sequence[Tensor], ours: bool, generator: torch.Generator | None) -> None:
    if generator is not None:
        raise RuntimeError(f"{name}: expected a generator of device '{DEVICE}', found '{generator.device}'")
    others = [value for value in tensors if not isinstance(value, Pretended) and value.dim() > 0]
    if name in _TAKES_BOTH:
        others = [] if name == "aten::copy_" or isinstance(tensors[0], Pretended) else others
        if name != "aten::index" and name != "aten::copy_":  # what is written is the last one
            others = [value for value in tensors[-1:] if not isinstance(value, Pretended) and value.dim() > 0]
    if ours and others:
        raise RuntimeError(f"{name}: expected all tensors on one device; {[str(value.device) for value in tensors]}")


def _write_down(name: str, tensors: Sequence[Tensor], leaves: bool) -> None:
    if name == "aten::_local_scalar_dense" and isinstance(tensors[0], Pretended):
        _record.copies.append((tensors[0].nbytes, name))
    elif name == "aten::copy_":
        leaves = isinstance(tensors[1], Pretended) and not isinstance(tensors[0], Pretended)
        _record.copies += [(tensors[1].nbytes, name)] if leaves else []
    elif leaves:
        _record.copies.append((tensors[0].nbytes, name))


class _Factories(TorchDispatchMode):
    """Tensors that are made on the device, or copied to it."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(operator, args, kwargs or {})


def moved(value: Any) -> Any:
    """A tensor, a module or images on the device."""
    if isinstance(value, Tensor):
        return Pretended(value.clone())
    if not isinstance(value, nn.Module):
        return tree_map(lambda item: moved(item) if isinstance(item, Tensor) else item, value)
    return _replaced(copy.deepcopy(value), lambda tensor: Pretended(tensor.detach()))


def returned(value: Any) -> Any:
    """A copy of the same on the CPU."""
    if isinstance(value, nn.Module):
        return _replaced(copy.deepcopy(value), _inner)
    return tree_map(_inner, value)


def _replaced(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = _like(tensor, change(tensor))
    return model


def _export(export: Callable[..., Any]) -> Callable[..., Any]:
    """torch.export, of the same model and inputs on the CPU; what the program holds is then moved here."""

    def call(model: nn.Module, args: Any, kwargs: Any, **options: Any) -> Any:
        with _disable_current_modes():
            program = export(returned(model), returned(args), returned(kwargs), **options)
        here = any(isinstance(tensor, Pretended) for tensor in [*model.parameters(), *model.buffers()])
        if here:
            for node in program.graph.nodes:
                node.kwargs = {**node.kwargs, **({"device": DEVICE} if "device" in node.kwargs else {})}
            for name, value in program.constants.items():
                program.constants[name] = moved(value)
        return program

    return call


@contextmanager
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Record]:
    """Within it, there is such a device."""
    _record.copies.clear()
    with monkeypatch.context() as patch, _Factories():
        patch.setitem(BACK_ENDS, (DEVICE.type, ""), kernels.emulated(0))
        patch.setattr(torch.export, "export", _export(torch.export.export))
        # Else Module.double() would change a parameter's metadata, and not what it wraps.
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        yield _record
