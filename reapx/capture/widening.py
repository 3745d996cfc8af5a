"""Running in float64 what forward() writes down in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

Returned = TypeVar("Returned")

_WIDE = {
    **dict.fromkeys([torch.float16, torch.bfloat16, torch.float32], torch.float64),
    **dict.fromkeys([torch.complex32, torch.complex64], torch.complex128),
}
_REINTERPRETS = torch.ops.aten.view.dtype
"""Its dtype says how bits are read."""


class _Widening(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operator that is asked for a floating-point dtype gives the widest one: casts, and new tensors."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is not _REINTERPRETS:
            args, kwargs = tree_map_only(torch.dtype, lambda dtype: _WIDE.get(dtype, dtype), (tuple(args), kwargs))
        return tree_map_only(Tensor, _widened, func(*args, **kwargs))


def _widened(value: Tensor) -> Tensor:
    return value.to(_WIDE[value.dtype]) if value.dtype in _WIDE else value


def computing_in(dtype: torch.dtype) -> AbstractContextManager[object]:
    """Within it, ``x.float()`` or ``torch.zeros(..., dtype=torch.float16)`` are in float64, if that is the dtype.

    Modules are copied outside of it: deepcopy makes tensors in its own way.
    """
    return _Widening() if dtype == torch.float64 else nullcontext()  # type: ignore[no-untyped-call]


def in_widest_dtype(call: Callable[[torch.dtype], Returned]) -> tuple[Returned, torch.dtype]:
    """What a call gives in float64, or in float32 where forward() cannot be run in float64; and which it was."""
    try:
        return call(torch.float64), torch.float64
    except torch.OutOfMemoryError:  # says nothing about the dtype
        raise
    except (RuntimeError, TypeError):
        pass  # outside, the error no longer holds what the first call made
    return call(torch.float32), torch.float32
