"""Checks of layer names and widths, and of what processes were called with, before anything is measured."""

from __future__ import annotations

import fnmatch
import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from ..allocation.allowed_widths import AllowedWidths, Widths
from ..calibration.processes import Processes
from ..errors import InputError
from ..groups.channel_groups import ChannelAnalysis, Frozen, Group
from ..text import listed
from .argument_checks import Bounds, GivenWidths, Layers, check_arguments, is_whole
from .model_checks import check_model


def check_settings(processes: Processes, settings: object) -> None:
    """Refuse processes whose settings differ from those of rank 0; settings are compared by their repr."""
    rank = processes.odd(repr(settings))
    if rank is not None:
        raise InputError(f"rank {rank} was called with other arguments than rank 0: give all processes the same")


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
    check_model(model)
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
            reason = f"excluded by the caller, or coupled to what is ({', '.join(sorted(hits))})"
            frozen += [Frozen(x.name, group.cuts[x.weight, x.out_axis].size, reason) for x in group.producers]
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
            fewest, most = _units(pattern, given, group, _named(channels, group, pattern))
            low, high = found.get(group.name, (0, group.size))
            found[group.name] = (max(fewest, low), min(most, high))
    for name, (low, high) in found.items():
        if low > high:
            raise InputError(f"bounds of {name} contradict each other: at least {low}, at most {high} stay")
    return found


def _named(channels: ChannelAnalysis, group: Group, pattern: str) -> str:
    """A group in the user's words: the layer that a pattern names, its width, and what its channels leave with."""
    layer = next(x.name for x in channels.all_producers(group) if _matches(x.name, pattern))
    coupled = "" if group.per_unit == 1 else f" that leave by {group.per_unit}"
    width = f"{layer}, which has {group.size * group.per_unit} channels{coupled}"
    if layer == group.name:
        return width
    return f"{width} and belongs to the {'residual stream' if group.residual_stream else 'group'} {group.name}"


def _units(pattern: str, given: tuple[float, float], group: Group, named: str) -> tuple[int, int]:
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
    raise InputError(
        f"bounds={{{pattern!r}: {given!r}}} for {named}: give (fewest, most), "
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
            named = _named(channels, group, pattern)
            found[group.name] = _width(pattern, width, group, allowed[group.name], named)
    return found


def _width(pattern: str, given: float, group: Group, allowed: Widths, named: str) -> int:
    if is_whole(given) and given in (allowed * group.per_unit).tolist():
        return int(given) // group.per_unit
    if isinstance(given, float) and 0 <= given <= 1:
        nearby = allowed[allowed > 0] if given > 0 else allowed[:1]
        nearest = nearby[abs(nearby - given * group.size).argmin()]
        if given > 0 or nearest == 0:
            return int(nearest)
    able = listed([str(width * group.per_unit) for width in allowed.tolist()])
    raise InputError(
        f"allocation={{{pattern!r}: {given!r}}} for {named}: give a share such as 0.5, "
        f"or one of the widths that it may have ({able})"
    )
