"""Refusals before anything is measured; each names the value and the cure."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from .. import _native
from ..allocation.output_errors import OUTPUT_ERRORS
from ..allocation.pro import POINTS
from ..calibration.images import Images
from ..calibration.processes import Processes
from ..costs.budget import Budget
from ..errors import InputError
from ..groups.channel_groups import ChannelAnalysis, Frozen, Group
from ..selection.lasso import require_lasso
from ..selection.methods import BLIND, SELECTIONS
from ..surgery.proof import tensors_in

ALLOCATIONS = ("pro", "uniform")


def model_device(model: nn.Module) -> torch.device:
    """The one device that all parameters and buffers are on."""
    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    if len(devices) > 1:
        raise InputError(f"the model is on several devices ({devices}): move it to one, model.to(device)")
    if not devices:
        raise InputError("the model has no parameters, so there is nothing to prune")
    device = devices.pop()
    _native.require(device)
    return device


def check_model(model: nn.Module) -> None:
    """Refuse a model in train mode."""
    if hasattr(model, "_orig_mod"):
        raise InputError("this is a model compiled by torch.compile: pass the original, model._orig_mod")
    for name, module in model.named_modules():
        if module.training:
            raise InputError(
                f"the model is in train mode ({name or type(model).__name__}): call model.eval() first, so that "
                "norms and dropout act as at inference"
            )


def check_arguments(budget: object, allocation: str, selection: str, round_to: int, damping: float) -> None:
    """Refuse arguments outside their choices."""
    if not isinstance(budget, Budget):
        raise InputError(f"budget={budget!r}: give reapx.MACs(0.5), reapx.Params(0.5) or reapx.Latency(0.5)")
    if allocation not in ALLOCATIONS:
        raise InputError(f"allocation={allocation!r}: choose one of {', '.join(ALLOCATIONS)}")
    if selection not in SELECTIONS:
        raise InputError(f"selection={selection!r}: choose one of {', '.join(SELECTIONS)}")
    if selection == "lasso":
        require_lasso()
    if not _is_whole(round_to) or round_to < 1:
        raise InputError(f"round_to={round_to!r}: give a whole number from 1")
    check_damping(damping)


def check_refinements(selection: str, allocation: str, swaps: int, positions: int | None) -> None:
    """Refuse swaps and positions that selection cannot use."""
    if not _is_whole(swaps) or swaps < 0:
        raise InputError(f"swaps={swaps!r}: give a whole number from 0")
    check_positions(positions)
    if selection != "reap" and swaps:
        raise InputError(f"selection={selection!r} is not refined: swaps need selection='reap'")
    if selection in BLIND and allocation != "pro" and positions:
        others = " or ".join(repr(name) for name in SELECTIONS if name not in BLIND)
        raise InputError(
            f"selection={selection!r} measures nothing: positions need selection={others}, or allocation='pro'"
        )


def check_positions(positions: int | None) -> None:
    """Refuse a number of positions that cannot be drawn."""
    if positions is not None and (not _is_whole(positions) or positions < 1):
        raise InputError(f"positions={positions!r}: give a whole number from 1, or None for all")


def check_measuring(allocation: str, points: int, rounds: int, output_error: str) -> None:
    """Refuse settings of the measurement at the outputs that allocation cannot use."""
    for name, value in (("points", points), ("rounds", rounds)):
        if not _is_whole(value) or value < 1:
            raise InputError(f"{name}={value!r}: give a whole number from 1")
    if output_error not in OUTPUT_ERRORS:
        raise InputError(f"output_error={output_error!r}: choose one of {', '.join(OUTPUT_ERRORS)}")
    if allocation != "pro" and (points, rounds, output_error) != (POINTS, 1, OUTPUT_ERRORS[0]):
        raise InputError(
            f"allocation={allocation!r} measures nothing at the outputs: points, rounds and output_error need "
            "allocation='pro'"
        )


def check_settings(processes: Processes, *settings: object) -> None:
    """Refuse processes that were called with other arguments than the first."""
    rank = processes.odd(repr(settings))
    if rank is not None:
        raise InputError(f"rank {rank} was called with other arguments than rank 0: give all processes the same")


def check_refits(refit: str, rectify: int) -> None:
    """Refuse refits and rectification outside their choices."""
    if refit not in ("all", "consumers"):
        raise InputError(f"refit={refit!r}: choose 'all' or 'consumers'")
    if not _is_whole(rectify) or rectify < 0:
        raise InputError(f"rectify={rectify!r}: give a whole number from 0")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_damping(damping: float) -> None:
    """Refuse a damping that is negative or not finite."""
    if not 0 <= damping < float("inf"):
        raise InputError(f"damping={damping!r}: give a number from 0, such as 1e-3")


def check_forward(model: nn.Module, images: Images) -> object:
    """Refuse images that the model does not run on; returns what it computes from two of them."""
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


def _matches(name: str, pattern: str) -> bool:
    """A pattern names a layer, or a module with all layers in it."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern + ".*")


def without_excluded(channels: ChannelAnalysis, patterns: Sequence[str]) -> ChannelAnalysis:
    """The channels without the groups that a layer named by the caller produces."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
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
    if not isinstance(bounds, Mapping):
        raise InputError(f"bounds={bounds!r}: give a dict, such as {{'layer3.*': (0.25, 1.0)}}")
    names = [layer.name for layer in channels.layers]
    for pattern, given in bounds.items():
        if not any(_matches(name, pattern) for name in names):
            raise InputError(f"bounds={pattern!r} matches no layer; there are {', '.join(names[:20])}")
        met = [g for g in channels.groups if any(_matches(x.name, pattern) for x in channels.all_producers(g))]
        full = isinstance(given, list | tuple) and len(given) == 2 and isinstance(given[-1], float) and given[-1] == 1.0
        if not met and not full:  # all may stay, and do
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
    """Bounds in units: whole numbers count channels of the first producer, others are shares."""
    full = group.size * group.per_unit

    def channels(value: float) -> float:
        return value if _is_whole(value) else value * full

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
