"""PRO, the pruning ratio optimizer: how much to take from which group, from errors at the network's outputs.

Each group alone is pruned to a few widths, its consumers refitted, and the network run from there to its end. Widths
then follow the steepest saving.

Source: K. Kamma, S. Inoue and T. Wada, "Pruning Ratio Optimization with Layer-Wise Pruning Method for Accelerating
Convolutional Neural Networks", IEICE Trans. Inf. & Syst. E105-D(1), 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from ..budget import Budget, Costs
from ..errors import BudgetError
from ..graph import Graph
from ..groups import Group
from ..images import Images
from ..resume import Checkpoint
from ..selection import Path
from ..selection.changes import cut_tensors
from .choices import Choices, Rules, Widths, largest, refusal
from .curves import Curve, ErrorCurve, fit_curve
from .outputs import output_errors
from .tradeoff import Descent, TradeoffPoint, idle_without


@dataclass(frozen=True)
class _Stage:
    """Curves that were measured from some widths on; they hold until the next stage starts."""

    widths: dict[str, int]
    error: float
    curves: dict[str, ErrorCurve]


class Tradeoff:
    """Measured errors, and the widths that they lead to at any budget.

    Attributes:
        choices: Group name -> widths that it may have.
        measure: What the errors are, as for ``output_errors``.
    """

    def __init__(
        self, costs: Costs, kind: type[Budget], groups: Sequence[Group], rules: Rules, measure: str = "squared"
    ) -> None:
        self._costs, self._kind, self._groups, self._rules = costs, kind, groups, rules
        self.choices, self.measure = rules.choices(groups), measure
        self._idle = idle_without(groups, costs)
        self._stages: list[_Stage] = []

    @property
    def curves(self) -> dict[str, ErrorCurve]:
        """Group name -> error at the outputs as this group alone is pruned."""
        return self._stages[0].curves

    @property
    def rounds(self) -> int:
        """How often curves were measured; ``curves`` are the first."""
        return len(self._stages)

    def add(self, widths: dict[str, int], error: float, curves: dict[str, ErrorCurve]) -> None:
        """Go on from some widths, and the error at them, with curves that were measured there."""
        self._stages.append(_Stage(widths, error, curves))

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
        """Corners of the trade-off from the full network down to the smallest one, at least 1/400 of the cost apart."""
        found: list[TradeoffPoint] = []
        apart = float(self._costs.of(kind)) / 400
        stages = self._of(kind)
        ends = [float(self._costs.of(kind, stage.widths)) for stage in stages[1:]]
        for stage, end in zip(stages, [*ends, 0.0], strict=True):
            descent = self._descent(kind, stage)
            while descent.cost > end:  # where it ends, the next stage starts
                if not found or found[-1].cost - descent.cost >= apart:
                    found.append(self._point(kind, stage, descent))
                if not descent.step(end):
                    break
            if stage is stages[-1] and (not found or descent.cost < found[-1].cost):
                found.append(self._point(kind, stage, descent))
        return found

    def _of(self, kind: type[Budget]) -> list[_Stage]:
        """Later stages lie on the way of the budget that they were measured for."""
        return self._stages if kind is self._kind else self._stages[:1]

    def _descent(self, kind: type[Budget], stage: _Stage) -> Descent:
        return Descent(self._costs, kind, stage.curves, self.choices, stage.widths, self._idle)

    def _point(self, kind: type[Budget], stage: _Stage, descent: Descent) -> TradeoffPoint:
        full = float(self._costs.of(kind))
        error = stage.error + descent.error
        return TradeoffPoint(descent.cost, descent.cost / max(full, 1e-300), error, dict(descent.widths))


POINTS = 2
"""Default number of measured widths per group; more choose no better widths."""


@dataclass(frozen=True)
class Measurement:
    """How errors at the outputs are measured.

    Attributes:
        points: Widths per group that are run; width 0, where allowed, is one more.
        rounds: How often; the second of two starts halfway to the budget.
        error: ``measure`` of ``output_errors``.
        images: About so many are run; None for all.
    """

    points: int = POINTS
    rounds: int = 1
    error: str = "squared"
    images: int | None = None


def measure_tradeoff(
    graph: Graph,
    images: Images,
    groups: Sequence[Group],
    paths: Sequence[Path],
    costs: Costs,
    budget: Budget,
    rules: Rules,
    measurement: Measurement,
    *,
    progress: bool,
    checkpoint: Checkpoint | None = None,
) -> Tradeoff:
    """Measure error curves and put them together.

    Args:
        paths: One per group, down to its smallest allowed width, with refits.
        budget: Further rounds start on the way to it.
        rules: Widths that groups may have.
        measurement: What is measured.
        checkpoint: Where it is stored as it comes, and found again after a kill.
    """
    errors_of = partial(
        output_errors,
        graph,
        images,
        measure=measurement.error,
        count=measurement.images,
        progress=progress,
        checkpoint=checkpoint,
    )
    kind = type(budget)
    tradeoff = Tradeoff(costs, kind, groups, rules, measurement.error)
    widths = largest(tradeoff.choices)
    start = float(costs.of(kind, widths))
    limit = budget.limit(costs.of(kind))
    curves: dict[str, ErrorCurve] = {}
    for done in range(measurement.rounds):
        if done > 0:
            point = tradeoff.below(kind, start - max(start - limit, 0.0) * done / measurement.rounds)
            widths = widths if point is None else point.widths
        present = _present(graph, groups, paths, widths)
        runs = list(_runs(graph, groups, paths, present, tradeoff.choices, measurement.points))
        edits = [*(run.edit for run in runs), {}]
        *errors, already = errors_of(edits, base=present.tensors or None)
        measured = _curves(groups, paths, present, runs, [error - already for error in errors])
        removals = dict(zip(widths, present.removals, strict=True))
        curves = {name: _positive(curve, curves.get(name), removals[name]) for name, curve in measured.items()}
        tradeoff.add(widths, already, curves)
        if checkpoint is not None:
            page = {name: {"width": widths[name], "errors": curve.measured} for name, curve in measured.items()}
            checkpoint.keep_values(f"points-{done}", page, last=True)
    return tradeoff


def _positive(curve: ErrorCurve, before: ErrorCurve | None, start: int) -> ErrorCurve:
    """The curve from ``start`` removals on, or what the one before says where it was lost in the others' errors."""
    if before is None or curve.errors[-1] > 0 or before.errors[-1] == 0:
        return curve
    return ErrorCurve(np.maximum(before.errors - before.errors[start], 0.0), curve.measured)


@dataclass(frozen=True)
class _Present:
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
class _Run:
    """One width of one group to be measured: the units that have left, and the tensors of the network then."""

    group: int
    removals: int
    edit: dict[str, Tensor]


def _present(graph: Graph, groups: Sequence[Group], paths: Sequence[Path], widths: Mapping[str, int]) -> _Present:
    removals = [group.size - widths[group.name] for group in groups]
    changes = [_changes(path, [count])[0] if count else {} for path, count in zip(paths, removals, strict=True)]
    return _Present(removals, changes, _combined(graph, paths, removals, changes))


def _combined(
    graph: Graph, paths: Sequence[Path], removals: Sequence[int], changes: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors that several groups' changes make together; none reads units that have left."""
    pairs = zip(paths, removals, strict=True)
    made = [(path.refits, count) for path, count in pairs if path.refits is not None]
    return cut_tensors(graph.tensors, changes, made)


def _changes(path: Path, counts: Sequence[int]) -> list[dict[str, Tensor]]:
    if not counts:
        return []
    assert path.refits is not None
    return path.refits.changes(counts)


def _runs(
    graph: Graph,
    groups: Sequence[Group],
    paths: Sequence[Path],
    present: _Present,
    choices: Choices,
    points: int,
) -> Iterator[_Run]:
    for index, (group, path) in enumerate(zip(groups, paths, strict=True)):
        counts = _counts(group, choices[group.name], present.removals[index], points, path.errors.numpy())
        for count, change in zip(counts, _changes(path, counts), strict=True):
            removals = [*present.removals[:index], count, *present.removals[index + 1 :]]
            others = present.changes[:index] + present.changes[index + 1 :]
            touching = [{name: value for name, value in other.items() if name in change} for other in others]
            yield _Run(index, count, _combined(graph, paths, removals, [change, *touching]))


def _curves(
    groups: Sequence[Group],
    paths: Sequence[Path],
    present: _Present,
    runs: Sequence[_Run],
    errors: Sequence[float],
) -> dict[str, ErrorCurve]:
    """Each group's curve from its present width on, all other groups staying at theirs."""
    curves = {}
    for index, (group, path) in enumerate(zip(groups, paths, strict=True)):
        measured = [(run.removals, error) for run, error in zip(runs, errors, strict=True) if run.group == index]
        steps = np.zeros(group.size)
        steps[: len(path.errors)] = path.errors.numpy()
        curves[group.name] = fit_curve(steps, measured, present.removals[index])
    return curves


def _counts(group: Group, choices: Widths, start: int, points: int, steps: Curve) -> list[int]:
    """Numbers of removals to measure: evenly between the present one and the most allowed, and all where allowed."""
    allowed = np.sort(group.size - choices)
    total = np.concatenate([[0.0], np.cumsum(steps)])
    costly = [int(count) for count in allowed if count > start and total[count] > total[start]]
    if not costly:
        return []
    last = int(allowed[-1])
    inner = [count for count in costly if count < group.size] or costly
    wanted = [start + (last - start) * (k + 1) / (points + 1) for k in range(points)]
    found = {min(inner, key=lambda count: abs(count - want)) for want in wanted}
    return sorted(found | {count for count in costly if count == group.size})
