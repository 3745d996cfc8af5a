"""Kernels write into memory that nothing else of the same call uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass

from torch import Tensor

from .tasks import CutsTask, PairConsumer, PairTask, PathConsumer, PathTask, SolveTask

_WRITTEN: dict[type, tuple[str, ...]] = {
    PathTask: ("order", "errors", "status"),
    PathConsumer: ("factor", "residual"),
    CutsTask: ("weights",),
    SolveTask: ("weight",),
    PairTask: ("table", "removed", "partner", "errors"),
    PairConsumer: ("gains",),
}

Named = tuple[str, Tensor, bool]
"""Name of an argument, its tensor, and whether the kernel writes into it."""


def named(name: str, value: object, written: bool = False) -> Iterator[Named]:
    """All tensors of a task or of a list of them."""
    if isinstance(value, Tensor):
        yield name, value, written
    elif is_dataclass(value):
        outputs = _WRITTEN.get(type(value), ())
        for field in fields(value):
            yield from named(f"{name}.{field.name}", getattr(value, field.name), field.name in outputs)
    elif isinstance(value, Sequence):
        for i, item in enumerate(value):
            yield from named(f"{name}[{i}]", item, written)


def named_in(given: Mapping[str, Tensor | None], *, written: bool = False) -> Iterator[Named]:
    """Those of some arguments that are given."""
    return ((name, tensor, written) for name, tensor in given.items() if tensor is not None)


def check_apart(arguments: Iterable[Named]) -> None:
    """Refuse outputs that share memory with another argument; inputs may be one and the same.

    Args:
        arguments: With dense memory each.

    Raises:
        ValueError: Two overlap; says which.
    """
    spans = sorted(
        (x.data_ptr(), x.data_ptr() + x.nbytes, name, written) for name, x, written in arguments if x.numel()
    )
    last_any = last_written = (0, "")
    for start, end, name, written in spans:
        before = last_any if written else last_written
        if start < before[0]:
            raise ValueError(f"{before[1]} and {name} overlap in memory: give each output memory of its own")
        last_any = max(last_any, (end, name))
        if written:
            last_written = max(last_written, (end, name))
