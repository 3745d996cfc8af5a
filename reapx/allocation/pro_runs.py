"""PRO's measured runs: the widths that are measured, the networks that are run, and the resulting curves."""

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
"""(index of a group, number of removed units, error at the outputs)."""


@dataclass(frozen=True)
class Present:
    """State of the network from which a round of measurements starts.

    Attributes:
        removals: Number of removed units of each group.
        changes: Differences of tensors that each group's removals make.
        tensors: Qualified name -> tensor of the network, where it differs from the original's.
    """

    removals: list[int]
    changes: list[dict[str, Tensor]]
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class MeasuredRun:
    """One width of one group to measure: one run of the network's suffix.

    Attributes:
        group: Index of the group.
        removals: Number of its removed units.
        tensors: Qualified name -> tensor that replaces the network's in this run.
    """

    group: int
    removals: int
    tensors: dict[str, Tensor]


def present_of(graph: Graph, groups: Sequence[Group], paths: Sequence[Path], widths: Mapping[str, int]) -> Present:
    """The state of the network at some widths, by group name."""
    removals = [group.size - widths[group.name] for group in groups]
    changes = [_changes(path, [count])[0] if count else {} for path, count in zip(paths, removals, strict=True)]
    return Present(removals, changes, _combined(graph, paths, removals, changes))


def _combined(
    graph: Graph, paths: Sequence[Path], removals: Sequence[int], changes: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors that several groups' changes give together, with exact zeros where removed units are read."""
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
    """The runs that this process measures: about ``points`` widths of every ``size``-th group, starting at ``rank``.

    Args:
        graph: The captured network.
        groups: All groups.
        paths: One for each group, with refitted weights.
        present: The state from which the runs start.
        allowed: Group name -> allowed widths.
        points: Number of widths for each group; width 0, where allowed, is one more.
        processes: The processes, with the ``size`` and ``rank`` above.
    """
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
    """Group name -> error curve from the group's present width on, with all other groups at their present widths."""
    curves = {}
    for index, (group, path) in enumerate(zip(groups, paths, strict=True)):
        own = [(removals, error) for group_index, removals, error in measured if group_index == index]
        steps = np.zeros(group.size)
        steps[: len(path.errors)] = path.errors.numpy()
        curves[group.name] = fit_curve(steps, own, present.removals[index])
    return curves


def _counts(group: Group, allowed: Widths, start: int, points: int, steps: Curve) -> list[int]:
    """Numbers of removals to measure: evenly spaced up to the largest allowed one, and the whole group if allowed."""
    allowed = np.sort(group.size - allowed)
    total = np.concatenate([[0.0], np.cumsum(steps)])
    costly = [int(count) for count in allowed if count > start and total[count] > total[start]]
    if not costly:
        return []
    last = int(allowed[-1])
    inner = [count for count in costly if count < group.size] or costly
    points = min(points, 2 * (last - start) + 1)  # so many are nearest to every width; more would find no others
    wanted = [start + (last - start) * (k + 1) / (points + 1) for k in range(points)]
    found = {min(inner, key=lambda count: abs(count - want)) for want in wanted}
    return sorted(found | {count for count in costly if count == group.size})
