"""Checks of models, images and layer names before anything is measured."""

from __future__ import annotations

import copy
import fnmatch
import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from .. import _native
from ..allocation.allowed_widths import AllowedWidths, Widths
from ..calibration.images import Images
from ..calibration.processes import Processes
from ..errors import InputError
from ..groups.channel_groups import ChannelAnalysis, Frozen, Group
from ..surgery.proof import tensors_in
from ..text import listed
from .argument_checks import Bounds, GivenWidths, Layers, check_arguments, is_whole


def model_device(model: nn.Module) -> torch.device:
    """The device of all parameters and buffers.

    Raises:
        InputError: they are on several devices, or there are none.
        BackendError: there are no kernels for the device.
    """
    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    if len(devices) > 1:
        raise InputError(f"the model is on several devices ({devices}): move it to one, model.to(device)")
    if not devices:
        raise InputError("the model has no parameters, so there is nothing to prune")
    device = devices.pop()
    _native.require(device)
    return device


def check_model(model: nn.Module) -> None:
    """Refuse values that are not a model, compiled models, and models in train mode."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}: give a torch.nn.Module")
    if hasattr(model, "_orig_mod"):
        raise InputError("this is a model compiled by torch.compile: pass the original, model._orig_mod")
    for name, module in model.named_modules():
        if module.training:
            raise InputError(
                f"the model is in train mode ({name or type(model).__name__}): call model.eval() first, so that "
                "norms and dropout act as at inference"
            )


def check_settings(processes: Processes, settings: object) -> None:
    """Refuse processes whose settings differ from those of rank 0; settings are compared by their repr."""
    rank = processes.odd(repr(settings))
    if rank is not None:
        raise InputError(f"rank {rank} was called with other arguments than rank 0: give all processes the same")


def check_forward(model: nn.Module, images: Images) -> object:
    """Refuse images on which the model does not run; returns the model's output for two of them."""
    try:
        with torch.no_grad():
            copied = copy.deepcopy(model)  # forward() may change buffers
            value = images.call(copied, images.example(2))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the model does not run on images of shape {images.shape} and dtype {images.example(1)[0].dtype}: "
            f"{reason}. They must be as the model wants them at inference: (images, channels, height, width), "
            "normalised, in the dtype of its weights (images.float() makes float32)"
        ) from error
    if not tensors_in(value):
        raise InputError("the model returns no tensor")
    return value


def layer_names(model: nn.Module, layers: Layers) -> tuple[str, ...]:
    """``exclude`` as names and patterns.

    Raises:
        InputError: it holds something else, or a module that is not in the model.
    """
    check_arguments(exclude=layers)
    given = [layers] if isinstance(layers, str | nn.Module) else layers
    return tuple(name for layer in given for name in _names(model, layer, "exclude"))


def bounds_by_name(model: nn.Module, bounds: Bounds) -> dict[str, tuple[float, float]]:
    """``bounds`` by names and patterns; raises what :func:`layer_names` raises."""
    check_arguments(bounds=bounds)
    return {name: ends for layer, ends in bounds.items() for name in _names(model, layer, "bounds")}


def widths_by_name(model: nn.Module, widths: GivenWidths) -> dict[str, float]:
    """``allocation``, where it is a dict of widths, by names and patterns; raises what :func:`layer_names` raises."""
    check_arguments(allocation=widths)
    return {name: width for layer, width in widths.items() for name in _names(model, layer, "allocation")}


def _names(model: nn.Module, layer: str | nn.Module, argument: str) -> list[str]:
    """A name or pattern itself, or a module's names in the model as patterns that match nothing else."""
    if isinstance(layer, str):
        return [layer]
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is layer]
    if not names:
        raise InputError(
            f"{argument}: the {type(layer).__name__} that was given is no module of this model: give one of "
            "model.modules(), which the modules of a copy are not, or a layer's name"
        )
    return [glob.escape(name) or "*" for name in names]


def _matches(name: str, pattern: str) -> bool:
    """A pattern names a layer, or a module with all layers in it."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern + ".*")


def without_excluded(channels: ChannelAnalysis, patterns: Sequence[str]) -> ChannelAnalysis:
    """The channel analysis with the groups frozen that a layer matching a pattern produces.

    Raises:
        InputError: a pattern matches no layer.
    """
    taking, frozen = [], list(channels.frozen)
    used: set[str] = set()
    for group in channels.groups:
        hits = {
            pattern for pattern in patterns if any(_matches(x.name, pattern) for x in channels.all_producers(group))
        }
        used |= hits
        if hits:
            frozen += [
                Frozen(x.name, group.size, f"excluded by the caller, or coupled to what is ({', '.join(sorted(hits))})")
                for x in group.producers
            ]
        else:
            taking.append(group)
    names = [layer.name for layer in channels.layers]
    for pattern in set(patterns) - used:
        if not any(_matches(name, pattern) for name in names):
            raise InputError(f"exclude={pattern!r} matches no layer; there are {', '.join(names[:20])}")
    return replace(channels, groups=taking, frozen=frozen)


def bounds_of(channels: ChannelAnalysis, bounds: Mapping[str, tuple[float, float]]) -> dict[str, tuple[int, int]]:
    """Group name -> (fewest, most) units that it keeps, from bounds by layer name or pattern.

    Where several patterns meet a group, all of them hold.
    """
    found: dict[str, tuple[int, int]] = {}
    names = [layer.name for layer in channels.layers]
    for pattern, given in bounds.items():
        if not any(_matches(name, pattern) for name in names):
            raise InputError(f"bounds={pattern!r} matches no layer; there are {', '.join(names[:20])}")
        met = [g for g in channels.groups if any(_matches(x.name, pattern) for x in channels.all_producers(g))]
        full = isinstance(given, list | tuple) and len(given) == 2 and isinstance(given[-1], float) and given[-1] == 1.0
        if not met and not full:  # bounds that allow all channels hold for frozen ones
            reasons = [f"{x.layer}: {x.reason}" for x in channels.frozen if _matches(x.layer, pattern)]
            raise InputError(f"bounds={pattern!r} bounds nothing, its channels all stay ({'; '.join(reasons[:3])})")
        for group in met:
            fewest, most = _units(pattern, given, group)
            low, high = found.get(group.name, (0, group.size))
            found[group.name] = (max(fewest, low), min(most, high))
    for name, (low, high) in found.items():
        if low > high:
            raise InputError(f"bounds of {name} contradict each other: at least {low}, at most {high} stay")
    return found


def _units(pattern: str, given: tuple[float, float], group: Group) -> tuple[int, int]:
    """Bounds in units; whole numbers count channels of the first producer, other numbers are shares."""
    full = group.size * group.per_unit

    def channels(value: float) -> float:
        return value if is_whole(value) else value * full

    ends = tuple(given) if isinstance(given, list | tuple) else ()
    valid = [isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in ends]
    if len(valid) == 2 and all(valid):
        low, high = (channels(x) for x in ends)
        if 0 <= low <= high <= full + 1e-9 and high >= group.per_unit - 1e-9:
            return math.ceil(low / group.per_unit - 1e-9), math.floor(high / group.per_unit + 1e-9)
    coupled = "" if group.per_unit == 1 else f" that leave by {group.per_unit}"
    raise InputError(
        f"bounds={{{pattern!r}: {given!r}}} for {group.name}, which has {full} channels{coupled}: give (fewest, most), "
        "as shares such as (0.25, 1.0) or whole numbers of channels (1 is one channel, 1.0 is all)"
    )


def widths_of(channels: ChannelAnalysis, given: Mapping[str, float], allowed: AllowedWidths) -> dict[str, int]:
    """Group name -> units that it keeps, from widths by layer name or pattern; the others keep the most they may.

    Args:
        given: Whole numbers of output channels, or shares, which become the nearest allowed width. Where several
            patterns meet a group, the last one holds.
        allowed: Group name -> widths that it may have, rising.

    Raises:
        InputError: a pattern meets no group, or its width is not allowed.
    """
    found = {name: int(widths[-1]) for name, widths in allowed.items()}
    for pattern, width in given.items():
        met = [g for g in channels.groups if any(_matches(x.name, pattern) for x in channels.all_producers(g))]
        if not met:
            names = [layer.name for layer in channels.layers]
            raise InputError(
                f"allocation={{{pattern!r}: ...}} meets no channels that can leave; layers are {names[:20]}"
            )
        for group in met:
            found[group.name] = _width(pattern, width, group, allowed[group.name])
    return found


def _width(pattern: str, given: float, group: Group, allowed: Widths) -> int:
    full = group.size * group.per_unit
    if is_whole(given) and given in (allowed * group.per_unit).tolist():
        return int(given) // group.per_unit
    if isinstance(given, float) and 0 <= given <= 1:
        nearby = allowed[allowed > 0] if given > 0 else allowed[:1]
        nearest = nearby[abs(nearby - given * group.size).argmin()]
        if given > 0 or nearest == 0:
            return int(nearest)
    able = listed([str(width * group.per_unit) for width in allowed.tolist()])
    raise InputError(
        f"allocation={{{pattern!r}: {given!r}}} for {group.name}, which has {full} channels: give a share such as 0.5, "
        f"or one of the widths that it may have ({able})"
    )
