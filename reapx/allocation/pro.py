"""PRO, the pruning ratio optimizer: how much to take from which group, from errors at the network's outputs.

Each group alone is pruned to a few widths, its consumers refitted, and the network run from there to its end. Widths
then follow the steepest saving.

Source: K. Kamma, S. Inoue and T. Wada, "Pruning Ratio Optimization with Layer-Wise Pruning Method for Accelerating
Convolutional Neural Networks", IEICE Trans. Inf. & Syst. E105-D(1), 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..budget import Budget, Costs
from ..errors import BudgetError
from ..graph import Graph
from ..groups import Group
from ..images import Images
from ..selection import Path
from ..selection.refits import combined
from .choices import Choices, Rules, refusal
from .curves import ErrorCurve, fit_curve
from .outputs import output_errors
from .tradeoff import Descent, TradeoffPoint


@dataclass(frozen=True)
class _Stage:
    """Curves that were measured from some widths on; they hold until the next stage starts."""

    widths: dict[str, int]
    error: float
    curves: dict[str, ErrorCurve]


class Tradeoff:
    """Measured errors, and the widths that they lead to at any budget.

    Attributes:
        curves: Group name -> error at the outputs as this group alone is pruned, from the full network on.
    """

    def __init__(self, costs: Costs, kind: type[Budget], groups: Sequence[Group], rules: Rules) -> None:
        self._costs, self._kind, self._groups, self._rules = costs, kind, groups, rules
        self._choices = rules.choices(groups)
        self._stages: list[_Stage] = []

    @property
    def curves(self) -> dict[str, ErrorCurve]:
        return self._stages[0].curves

    def add(self, curves: dict[str, ErrorCurve], point: TradeoffPoint | None = None) -> None:
        """Go on from a point (the full network if None) with curves that were measured there."""
        start = dict(self._costs.full) if point is None else point.widths
        for name, allowed in self._choices.items():
            start[name] = min(start[name], int(allowed[-1]))
        self._stages.append(_Stage(start, 0.0 if point is None else point.error, curves))

    def at(self, budget: Budget) -> TradeoffPoint:
        """The widths for a budget: never above it, and no allowed width wider fits.

        Raises:
            BudgetError: even the smallest widths cost more; says how much.
        """
        limit = budget.limit(self._costs.of(type(budget)))
        point = self.below(type(budget), limit)
        if point is None:
            raise BudgetError(refusal(budget, self._costs, self._groups, self._rules))
        return point

    def below(self, kind: type[Budget], limit: float) -> TradeoffPoint | None:
        """The widths at which a cost is at most ``limit``; None where none are so small."""
        stages = [stage for stage in self._of(kind) if float(self._costs.of(kind, stage.widths)) > limit]
        stage = stages[-1] if stages else self._stages[0]
        descent = self._descent(kind, stage)
        while descent.cost > limit:
            if not descent.step(limit):
                return None
        descent.give_back(limit)
        return self._point(kind, stage, descent)

    def points(self, kind: type[Budget]) -> list[TradeoffPoint]:
        """All corners of the trade-off from the full network down to the smallest one."""
        found = []
        stages = self._of(kind)
        ends = [float(self._costs.of(kind, stage.widths)) for stage in stages[1:]]
        for stage, end in zip(stages, [*ends, 0.0], strict=True):
            descent = self._descent(kind, stage)
            found.append(self._point(kind, stage, descent))
            while descent.cost > end and descent.step(end):
                found.append(self._point(kind, stage, descent))
        return found

    def _of(self, kind: type[Budget]) -> list[_Stage]:
        """Later stages lie on the way of the budget that they were measured for."""
        return self._stages if kind is self._kind else self._stages[:1]

    def _descent(self, kind: type[Budget], stage: _Stage) -> Descent:
        return Descent(self._costs, kind, stage.curves, self._choices, stage.widths)

    def _point(self, kind: type[Budget], stage: _Stage, descent: Descent) -> TradeoffPoint:
        full = float(self._costs.of(kind))
        errors = (stage.curves[name].by_width[descent.widths[name]] for name in stage.curves)
        error = stage.error + float(sum(errors))
        return TradeoffPoint(descent.cost, descent.cost / max(full, 1e-300), error, dict(descent.widths))


def measure_tradeoff(
    graph: Graph,
    images: Images,
    groups: Sequence[Group],
    paths: Sequence[Path],
    costs: Costs,
    budget: Budget,
    rules: Rules,
    *,
    points: int,
    rounds: int,
    measure: str,
    progress: bool,
) -> Tradeoff:
    """Measure error curves and put them together.

    Args:
        paths: One per group, down to its smallest allowed width, with refits.
        rules: Widths that groups may have.
        points: Widths per group that are run; width 0, where allowed, is one more.
        rounds: How often to measure: the second of two starts halfway to the budget.
        measure: See ``output_errors``.
    """
    kind = type(budget)
    tradeoff = Tradeoff(costs, kind, groups, rules)
    choices = rules.choices(groups)
    full = float(costs.of(kind))
    limit = budget.limit(full)
    point: TradeoffPoint | None = None
    curves: dict[str, ErrorCurve] = {}
    for done in range(rounds):
        if done > 0:
            tradeoff.at(budget)  # refuses a budget that cannot be reached
            point = tradeoff.below(kind, full - (full - limit) * done / rounds)
        widths = costs.full if point is None else point.widths
        measured = _measure_curves(
            graph, images, groups, paths, widths, choices, points=points, measure=measure, progress=progress
        )
        curves = {name: _positive(curve, curves.get(name)) for name, curve in measured.items()}
        tradeoff.add(curves, point)
    return tradeoff


def _positive(curve: ErrorCurve, before: ErrorCurve | None) -> ErrorCurve:
    """The curve, or what the one before says where this one was lost in the noise of the others' errors."""
    if before is None or curve.errors[-1] > 0 or before.errors[-1] == 0:
        return curve
    start = max((count for count, _ in curve.measured), default=0)
    return ErrorCurve(np.maximum(before.errors - before.errors[start], 0.0), curve.measured)


@dataclass(frozen=True)
class _Run:
    group: int
    removals: int
    edit: dict[str, Tensor]


def _measure_curves(
    graph: Graph,
    images: Images,
    groups: Sequence[Group],
    paths: Sequence[Path],
    widths: Mapping[str, int],
    choices: Choices,
    *,
    points: int,
    measure: str,
    progress: bool,
) -> dict[str, ErrorCurve]:
    """Each group's curve from the present widths on, all other groups staying at theirs."""
    starts = [group.size - widths[group.name] for group in groups]
    present = [_changes(path, [start])[0] if start else {} for path, start in zip(paths, starts, strict=True)]
    pruned = any(starts)
    runs = list(_runs(graph, groups, paths, starts, present, choices, points))
    edits = [run.edit for run in runs] + ([{}] if pruned else [])
    errors = output_errors(
        graph,
        images,
        edits,
        base=combined(graph.tensors, present) if pruned else None,
        measure=measure,
        progress=progress,
    )
    already = errors[-1] if pruned else 0.0
    curves = {}
    for index, (group, path) in enumerate(zip(groups, paths, strict=True)):
        measured = [(run.removals, e - already) for run, e in zip(runs, errors, strict=False) if run.group == index]
        steps = np.zeros(group.size)
        steps[: len(path.errors)] = path.errors.numpy()
        curves[group.name] = fit_curve(steps, measured, starts[index])
    return curves


def _changes(path: Path, counts: Sequence[int]) -> list[dict[str, Tensor]]:
    assert path.refits is not None
    return path.refits.changes(counts)


def _runs(
    graph: Graph,
    groups: Sequence[Group],
    paths: Sequence[Path],
    starts: Sequence[int],
    present: Sequence[dict[str, Tensor]],
    choices: Choices,
    points: int,
) -> Iterator[_Run]:
    for index, (group, path) in enumerate(zip(groups, paths, strict=True)):
        counts = _counts(group.size - choices[group.name], starts[index], points, path.errors.numpy())
        others = [change for k, change in enumerate(present) if k != index]
        for count, change in zip(counts, _changes(path, counts) if counts else [], strict=True):
            touching = [{n: v for n, v in other.items() if n in change} for other in others]
            edit = combined(graph.tensors, [change, *touching])
            yield _Run(index, count, edit)


def _counts(removals: np.ndarray, start: int, points: int, steps: np.ndarray) -> list[int]:
    """Numbers of removals to measure: evenly between the present one and the most allowed, and all where allowed."""
    allowed = np.sort(removals[removals > start])
    if len(allowed) == 0:
        return []
    last = int(allowed[-1])
    total = np.concatenate([[0.0], np.cumsum(steps)])
    costly = [int(count) for count in allowed if total[count] > total[start]]
    inner = [count for count in costly if count < len(total) - 1] or costly
    if not inner:
        return []
    wanted = [start + (last - start) * (k + 1) / (points + 1) for k in range(points)]
    found = {min(inner, key=lambda count: abs(count - want)) for want in wanted}
    if last == len(total) - 1 and last in costly:
        found.add(last)
    return sorted(found)
