"""Transplant: a network takes the tensors and modules of its smaller copy, completely or not at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..capture.exporting.plain_attention import PlainAttention, can_be_plain
from .cut import ORIGIN, tensors_in_module
from .module_numbers import CHANGED

Step = tuple[Callable[[], None], Callable[[], None]]
"""A change, and a function that undoes it whether or not it was made."""

_PLAIN = (int, float, str, tuple, type(None))


def transplant(model: nn.Module, smaller: nn.Module, names: Collection[str]) -> None:
    """Give a network the tensors, sizes and replaced modules of its smaller shadow.

    Everything is prepared before anything changes, and an interruption such as Ctrl-C undoes the changes. Parameters
    and buffers remain the same objects, so optimisers and others that hold them see the smaller values. Their
    gradients, which belong to the larger network, are dropped.

    Args:
        model: The network; changed in place.
        smaller: Its shrunk ``shadow``; it must not be used afterwards, since the network takes its tensors.
        names: Qualified names of the parameters and buffers that differ.
    """
    steps = list(_steps(model, smaller, frozenset(names)))
    try:
        for change, _ in steps:
            change()
    except BaseException:
        _undo(steps)
        raise


def _undo(steps: list[Step]) -> None:
    try:
        for _, undo in reversed(steps):
            undo()
    except KeyboardInterrupt:  # a half-changed network would not run, so undo again
        _undo(steps)


def _steps(model: nn.Module, smaller: nn.Module, names: frozenset[str], prefix: str = "") -> Iterator[Step]:
    before = tensors_in_module(model)
    for leaf, new in tensors_in_module(smaller).items():
        if f"{prefix}{leaf}" in names and before[leaf] is not new:
            yield _of_tensor(before[leaf], new.detach())
    yield from (_of_entry(model.__dict__, key, value) for key, value in _numbers_that_differ(model, smaller).items())
    for key in (ORIGIN, CHANGED):
        if key in smaller.__dict__:
            yield _of_entry(model.__dict__, key, smaller.__dict__[key])
    for name, child in smaller._modules.items():
        own = model._modules[name]
        if own is None or child is None:
            continue
        if isinstance(child, PlainAttention) and can_be_plain(own):
            yield _of_class(own, PlainAttention)
            yield from _steps(own, child, names, f"{prefix}{name}.")
        elif type(own) is type(child):
            yield from _steps(own, child, names, f"{prefix}{name}.")
        else:
            yield _of_entry(model._modules, name, child)


def _of_class(module: nn.Module, kind: type[nn.Module]) -> Step:
    before = type(module)

    def change() -> None:
        module.__class__ = kind

    def undo() -> None:
        module.__class__ = before

    return change, undo


def _numbers_that_differ(model: nn.Module, smaller: nn.Module) -> dict[str, object]:
    """Sizes that a module has as attributes, such as ``out_channels``."""
    before = model.__dict__
    return {
        key: value
        for key, value in smaller.__dict__.items()
        if isinstance(value, _PLAIN) and key in before and isinstance(before[key], _PLAIN) and before[key] != value
    }


def _of_tensor(tensor: Tensor, new: Tensor) -> Step:
    old, gradient = tensor.data, tensor.grad

    def change() -> None:
        tensor.grad = None
        _set_data(tensor, new)

    def undo() -> None:
        _set_data(tensor, old)
        tensor.grad = gradient

    return change, undo


def _set_data(tensor: Tensor, value: Tensor) -> None:
    """Set a parameter's data to a tensor of another shape.

    While a loss of the larger network is held, autograd expects gradients of the earlier shape. It forgets this shape
    only if the dtype changes, so the dtype changes for a moment.
    """
    other = torch.float32 if value.dtype == torch.float64 else torch.float64
    tensor.data = value.new_empty(0, dtype=other)
    tensor.data = value


def _of_entry(entries: dict[str, Any], key: str, value: object) -> Step:
    there, before = key in entries, entries.get(key)

    def change() -> None:
        entries[key] = value

    def undo() -> None:
        if there:
            entries[key] = before
        else:
            entries.pop(key, None)

    return change, undo
