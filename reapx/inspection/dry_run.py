"""Dry run: check on a copy that the user's forward() runs with fewer channels and gives the right outputs.

The captured graph does not show whether forward() computes a size or fixes it as a number. So one unit of every group
is removed from a copy, and its outputs are compared with those of the masked original: all groups at once, and where
that fails, bisection finds the groups that fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.fx import Node

from ..calibration.images import Images
from ..capture.dependence import varying
from ..capture.exporting.user_code import first_cause, line_of_node, place_of_error
from ..capture.graph import Graph, operator_name
from ..capture.layers import calls_of
from ..capture.tails import tail_of
from ..capture.training import idle_parameters, training_copy
from ..errors import ProofError
from ..groups.channel_groups import ChannelAnalysis, Frozen, Group
from ..surgery.cut import kept_positions
from ..surgery.emptied_layers import find_endings, shrunk_exactly
from ..surgery.module_numbers import numbers_after
from ..surgery.proof import TOLERANCE, difference, finite_outputs, masked_tensors, outputs_of
from ..text import listed
from .head_numbers import candidates, kind_of

_ONLY = "it is the only one"
_LONGEST = 300
"""Largest number of characters of an error of forward() that a reason shows."""
_ERRORS = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError),
    ProofError,
)
"""What forward() raises where it does not bear fewer channels."""
_SIZED = frozenset("split split_with_sizes slice narrow select view reshape unflatten expand pad".split())
"""Operators that take sizes or positions of channels."""


def freeze_failing(model: nn.Module, graph: Graph, channels: ChannelAnalysis, images: Images) -> ChannelAnalysis:
    """Freeze the groups without which the user's forward() fails or gives wrong outputs, and groups of a single unit.

    Args:
        model: The user's model; only copies are changed.
        graph: The captured model.
        channels: The channel analysis.
        images: Calibration images.

    Returns:
        The channel analysis with these groups frozen.
    """
    frozen = list(channels.frozen)
    for group in channels.groups:
        if group.size == 1:
            frozen += _frozen(group, f"it is one unit of {group.per_unit} channels" if group.per_unit > 1 else _ONLY)
    tried = [group for group in channels.groups if group.size > 1]
    counted, uncounted = _with_numbers(tried, model, graph, images)
    groups, failures = _passing(counted, lambda groups: _failure(model, graph, groups, images, 1))
    failures |= uncounted
    for group in tried:
        if group.name in failures:
            reason = f"forward() does not work with fewer of these channels: {failures[group.name]}"
            frozen += _frozen(group, reason)
    return replace(channels, groups=groups, frozen=frozen)


def _with_numbers(
    tried: Sequence[Group], model: nn.Module, graph: Graph, images: Images
) -> tuple[list[Group], dict[str, str]]:
    """The groups with the numbers that count their heads, and why forward() works with none of the likely ones.

    Of attention modules of a kind, one is tried: a network has many.
    """
    chosen: dict[object, tuple[int, str | None]] = {}
    found: list[Group] = []
    failures: dict[str, str] = {}
    for group in tried:
        sets = candidates(model, graph, group)
        if sets == [()]:
            found.append(group)
            continue
        kind = kind_of(model, group, sets)
        if kind not in chosen:
            trials = (_failure(model, graph, [replace(group, numbers=names)], images, 1) for names in sets)
            chosen[kind] = _first_success(trials)
        place, reason = chosen[kind]
        if reason is None:
            found.append(replace(group, numbers=sets[place]))
        else:
            failures[group.name] = reason
    return found, failures


def _first_success(failures: Iterable[str | None]) -> tuple[int, str | None]:
    """Place of the first trial that does not fail, and None; without one, place 0 and why the first trial failed."""
    first = None
    for place, reason in enumerate(failures):
        if reason is None:
            return place, None
        first = first or reason
    return 0, first


def _frozen(group: Group, reason: str) -> list[Frozen]:
    """All output channels of a group's producers as frozen ones."""
    return [Frozen(layer.name, group.cuts[layer.weight, layer.out_axis].size, reason) for layer in group.producers]


def _passing(
    groups: Sequence[Group], failure: Callable[[list[Group]], str | None]
) -> tuple[list[Group], dict[str, str]]:
    """The groups that pass a trial together, found by bisection, and why each of the others fails beside them.

    Among n groups, k that fail take about 2 k log n trials; where none fails, one is enough.
    """
    passing: list[Group] = []
    failures: dict[str, str] = {}

    def settle(part: Sequence[Group], known: str | None = None) -> None:
        """Settle some groups, which with those that pass are known to fail for a reason, or not yet tried."""
        reason = known or failure([*passing, *part])
        if reason is None:
            passing.extend(part)
        elif len(part) == 1:
            failures[part[0].name] = reason
        else:
            middle, before = len(part) // 2, len(passing)
            settle(part[:middle])
            settle(part[middle:], reason if len(passing) - before == middle else None)

    if groups:
        settle(groups)
    return passing, failures


def _failure(
    model: nn.Module, graph: Graph, groups: Sequence[Group], images: Images, count: int | None = None
) -> str | None:
    """Why removing the last ``count`` units of each group (by default all) fails; None if it works."""
    removed = {group.name: torch.arange(group.size)[-(count or group.size) :] for group in groups}
    kept = kept_positions(groups, removed, graph.tensors)
    try:
        numbers = numbers_after(model, groups, removed)
        tried = shrunk_exactly(model, kept, {}, find_endings(graph, groups, kept), numbers)
        gap, dtype = difference(tried, graph, masked_tensors(graph, groups, kept, {}), images, 2)
        if idle_parameters(graph) and _trains(model, images):
            outputs_of(training_copy(tried), images, images.example(2), dtype)
    except torch.OutOfMemoryError:  # not caused by the channels
        raise
    except _ERRORS as error:
        return _told(error, model)
    if not gap <= TOLERANCE[dtype]:
        lines = _literal_lines(groups)
        which = f", perhaps in {listed(lines, 3)}" if lines else ""
        return f"outputs differ by {gap:.0e} (a size or position is written down as a number{which})"
    return None


def _told(error: Exception, tried: nn.Module) -> str:
    """Where forward() failed, in the user's code, and how."""
    first, place = first_cause(error), place_of_error(error, tried)
    reason = " ".join(str(first).split()) or type(first).__name__
    reason = reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}..."
    return f"{place}: {reason}" if place else reason


def _literal_lines(groups: Sequence[Group]) -> list[str]:
    """The user's lines that cut or reshape the channels of some groups by numbers, before a layer reads them."""
    found: dict[str, None] = {}
    layers = {consumer.layer.node for group in groups for consumer in group.consumers}
    waiting = [layer.node for group in groups for layer in group.producers]
    seen = set(waiting)
    while waiting:
        for user in waiting.pop(0).users:
            if user not in seen and user not in layers:
                seen.add(user)
                waiting.append(user)
                line = line_of_node(user) if user.op == "call_function" and operator_name(user) in _SIZED else None
                if line is not None:
                    found[line] = None
    return list(found)


def _trains(model: nn.Module, images: Images) -> bool:
    """Whether the user's forward() works in train mode, where it uses parameters that it does not use otherwise."""
    return finite_outputs(training_copy(model), images, images.example(2)) is not None


def find_droppable(model: nn.Module, graph: Graph, channels: ChannelAnalysis, images: Images) -> frozenset[str]:
    """Names of the groups that may leave as a whole, since the residual branch then adds only a constant.

    Such a group is inside of a branch: the other operand of a residual add, and the outputs, depend on the images
    without it. And the user's forward() works without it.
    """
    inside = _inside_branches(graph, channels)
    order = {group.name: index for index, group in enumerate(inside)}
    ends = {
        group.name
        for group in inside
        if any(tail_of(graph, consumer.layer).total is not None for consumer in group.consumers)
    }

    def failure(groups: list[Group]) -> str | None:
        first = [group for group in groups if group.name not in ends]  # without what follows them in their branch
        trials = [groups, first] if 0 < len(first) < len(groups) else [groups]
        return next(filter(None, (_failure(model, graph, tried, images) for tried in trials)), None)

    passing, _ = _passing(sorted(inside, key=lambda group: (group.name not in ends, order[group.name])), failure)
    return frozenset(group.name for group in passing)


def _inside_branches(graph: Graph, channels: ChannelAnalysis) -> list[Group]:
    """The groups inside of residual branches; of parallel branches without a shortcut, the last keeps its groups.

    Groups of layers that are called several times are not among them: a branch may need what another one does not.
    """
    others: dict[str, list[Node]] = {}
    """Weight of a layer -> the other operands of the residual adds that its outputs end in."""
    inside: list[Group] = []
    for group in reversed(channels.groups):
        met: list[Node] = []
        for layer in {consumer.layer.weight: consumer.layer for consumer in group.consumers}.values():
            other = tail_of(graph, layer).other
            met += [other] if other is not None else others.get(layer.weight, [])
        depending = varying(graph.inputs, graph.nodes, [layer.node for layer in channels.all_producers(group)])
        if any(len(calls_of(graph, layer)) > 1 for layer in [*group.producers, *(c.layer for c in group.consumers)]):
            continue
        if not group.residual_stream and any(node in depending for node in met):
            inside.append(group)
            for producer in group.producers:
                others.setdefault(producer.weight, []).extend(met)
    reached = graph.varying.intersection(graph.outputs)
    found: list[Group] = []
    gone: list[Node] = []
    for group in reversed(inside):
        nodes = [layer.node for layer in channels.all_producers(group)]
        if reached <= varying(graph.inputs, graph.nodes, [*gone, *nodes]):
            found.append(group)
            gone += nodes
    return found
