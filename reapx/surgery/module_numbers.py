"""Numbers of modules that no tensor shows: ``num_heads`` and the like, and the widths of norms without tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration.images import Images
from ..groups.channel_groups import Group

Numbers = Mapping[str, Mapping[str, int]]
"""Path of a module -> attribute -> its value in the smaller network."""

CHANGED = "_reapx_numbers"
"""Attribute of a module whose numbers were changed: their names, as plain data that copies and pickles keep."""


def numbers_after(model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Tensor]) -> Numbers:
    """The numbers that count units of groups, or something in each of them, after some units have left.

    Args:
        model: The network before.
        groups: Channel groups.
        removed: Group name -> units that leave.
    """
    found: dict[str, dict[str, int]] = {}
    for group in groups:
        gone = len(removed.get(group.name, ()))
        for path, name in group.numbers if gone else ():
            before = found.get(path, {}).get(name, getattr(model.get_submodule(path), name))
            found.setdefault(path, {})[name] = before * (group.size - gone) // group.size
    return found


def set_numbers(model: nn.Module, numbers: Numbers) -> None:
    """Set the numbers, in place."""
    for path, values in numbers.items():
        module = model.get_submodule(path)
        for name, value in values.items():
            setattr(module, name, value)
        module.__dict__[CHANGED] = tuple(sorted({*module.__dict__.get(CHANGED, ()), *values}))


def numbers_of(model: nn.Module) -> dict[str, dict[str, int]]:
    """All numbers that were changed in a network, whenever it was cut."""
    return {
        path: {name: getattr(module, name) for name in module.__dict__[CHANGED]}
        for path, module in model.named_modules()
        if CHANGED in module.__dict__
    }


def strange_numbers(model: nn.Module, numbers: Numbers) -> list[str]:
    """The numbers that a network does not have, or that would grow."""
    modules = dict(model.named_modules())
    return [
        f"{path}.{name}" if path else name
        for path, values in numbers.items()
        for name, value in values.items()
        if not _can_become(modules[path].__dict__.get(name) if path in modules else None, value)
    ]


def _can_become(own: object, value: int) -> bool:
    return isinstance(own, int) and not isinstance(own, bool) and 0 <= value <= own


# Norms without parameters and statistics, such as nn.InstanceNorm2d(16)


def bare_norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._NormBase]:
    """Path -> batch or instance norm, for all that hold no tensor."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and not module.affine and not module.track_running_stats
    }


def follow_inputs(model: nn.Module) -> None:
    """Let such norms set their width to that of their input on every call."""
    for norm in bare_norms(model).values():
        norm.register_forward_pre_hook(_follow, with_kwargs=True)


def _follow(norm: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    norm.num_features = next(iter((*args, *kwargs.values()))).shape[1]


def input_widths(model: nn.Module, images: Images) -> dict[str, int]:
    """Path of each such norm -> width of its input; the model is not changed."""
    if not bare_norms(model):
        return {}
    copied = copy.deepcopy(model)
    follow_inputs(copied)
    with torch.no_grad():
        images.call(copied, images.example(2))
    return {path: norm.num_features for path, norm in bare_norms(copied).items()}


def set_widths(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Set ``num_features`` of such norms, by their paths."""
    norms = bare_norms(model)
    for path, width in widths.items():
        norms[path].num_features = width
