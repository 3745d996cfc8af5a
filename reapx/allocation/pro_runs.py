"""Which widths PRO measures, the networks that are run for them, and the curves that come of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..calibration.processes import Processes
from ..capture.graph import Graph
from ..groups.channel_groups import Group
from ..selection.paths.path import Path
from ..selection.paths.weight_changes import cut_tensors
from .allowed_widths import AllowedWidths, Widths
from .curves import Curve, ErrorCurve, fit_curve

MeasuredError = tuple[int, int, float]
"""Index of a group, units that have left it, and the error then."""


@dataclass(frozen=True)
class Present:
    """How far the network is pruned already.

    Attributes:
        removals: Units that have left each group.
        changes: What each group's removals change.
        tensors: The network's tensors that differ from the original's.
    """

    removals: list[int]
    changes: list[dict[str, Tensor]]
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class MeasuredRun:
    """One width of one group to be measured: the units that have left, and the tensors of the network then."""

    group: int
    removals: int
    tensors: dict[str, Tensor]


def present_of(graph: Graph, groups: Sequence[Group], paths: Sequence[Path], widths: Mapping[str, int]) -> Present:
    """How far the network is pruned at these widths, by group name."""
    removals = [group.size - widths[group.name] for group in groups]
    changes = [_changes(path, [count])[0] if count else {} for path, count in zip(paths, removals, strict=True)]
    return Present(removals, changes, _combined(graph, paths, removals, changes))


def _combined(
    graph: Graph, paths: Sequence[Path], removals: Sequence[int], changes: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors that several groups' changes make together; none reads units that have left."""
    pairs = zip(paths, removals, strict=True)
    made = [(path.refitted, count) for path, count in pairs if path.refitted is not None]
    return cut_tensors(graph.tensors, changes, made)


def _changes(path: Path, counts: Sequence[int]) -> list[dict[str, Tensor]]:
    if not counts:
        return []
    assert path.refitted is not None
    return path.refitted.changes(counts)


def measured_runs(
    graph: Graph,
    groups: Sequence[Group],
    paths: Sequence[Path],
    present: Present,
    allowed: AllowedWidths,
    points: int,
    processes: Processes,
) -> Iterator[MeasuredRun]:
    """What this process measures: of its groups, every so-manyth, about ``points`` widths each."""
    for index, (group, path) in enumerate(zip(groups, paths, strict=True)):
        if index % processes.size != processes.rank:
            continue
        counts = _counts(group, allowed[group.name], present.removals[index], points, path.errors.numpy())
        for count, change in zip(counts, _changes(path, counts), strict=True):
            removals = [*present.removals[:index], count, *present.removals[index + 1 :]]
            others = present.changes[:index] + present.changes[index + 1 :]
            touching = [{name: value for name, value in other.items() if name in change} for other in others]
            yield MeasuredRun(index, count, _combined(graph, paths, removals, [change, *touching]))


def curves_of(
    groups: Sequence[Group],
    paths: Sequence[Path],
    present: Present,
    measured: Sequence[MeasuredError],
) -> dict[str, ErrorCurve]:
    """Each group's curve from its present width on, all other groups staying at theirs."""
    curves = {}
    for index, (group, path) in enumerate(zip(groups, paths, strict=True)):
        own = [(removals, error) for place, removals, error in measured if place == index]
        steps = np.zeros(group.size)
        steps[: len(path.errors)] = path.errors.numpy()
        curves[group.name] = fit_curve(steps, own, present.removals[index])
    return curves


def _counts(group: Group, allowed: Widths, start: int, points: int, steps: Curve) -> list[int]:
    """Numbers of removals to measure: evenly between the present one and the most allowed, and all where allowed."""
    allowed = np.sort(group.size - allowed)
    total = np.concatenate([[0.0], np.cumsum(steps)])
    costly = [int(count) for count in allowed if count > start and total[count] > total[start]]
    if not costly:
        return []
    last = int(allowed[-1])
    inner = [count for count in costly if count < group.size] or costly
    wanted = [start + (last - start) * (k + 1) / (points + 1) for k in range(points)]
    found = {min(inner, key=lambda count: abs(count - want)) for want in wanted}
    return sorted(found | {count for count in costly if count == group.size})
