"""PRO, the pruning ratio optimizer: choose the width of each group by errors at the network's outputs.

Each group alone is pruned to a few widths, its consumers are refitted, and the network is run from there to its end.
The descent then prunes the group with the least added error per saved cost.

Source: K. Kamma, S. Inoue and T. Wada, "Pruning Ratio Optimization with Layer-Wise Pruning Method for Accelerating
Convolutional Neural Networks", IEICE Trans. Inf. & Syst. E105-D(1), 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np

from ..calibration.checkpoint import Checkpoint
from ..calibration.images import Images
from ..calibration.progress import Progress
from ..capture.graph import Graph
from ..costs.budget import Budget, Costs
from ..errors import BudgetError
from ..groups.channel_groups import Group
from ..selection.paths.path import Path
from .allowed_widths import WidthRules, largest, refusal
from .curves import ErrorCurve
from .descent import Descent, TradeoffPoint, idle_without
from .output_errors import output_errors
from .pro_runs import curves_of, measured_runs, present_of


@dataclass(frozen=True)
class _Stage:
    """Error curves measured from some widths on; they hold until the widths at which the next stage starts.

    Attributes:
        widths: Group name -> width at which the stage starts.
        error: Error at the outputs at these widths.
        curves: Group name -> error curve.
    """

    widths: dict[str, int]
    error: float
    curves: dict[str, ErrorCurve]


class Tradeoff:
    """Measured error curves, and the widths that they give for any budget.

    Attributes:
        allowed: Group name -> allowed widths.
        measure: Measure of the errors, ``"squared"`` or ``"kl"``; see ``output_errors``.
    """

    def __init__(
        self,
        costs: Costs,
        kind: type[Budget],
        groups: Sequence[Group],
        width_rules: WidthRules,
        measure: str = "squared",
    ) -> None:
        self._costs, self._kind, self._groups, self._width_rules = costs, kind, groups, width_rules
        self.allowed, self.measure = width_rules.allowed(groups), measure
        self._idle = idle_without(groups, costs)
        self._stages: list[_Stage] = []

    @property
    def curves(self) -> dict[str, ErrorCurve]:
        """Group name -> error curve at the outputs with this group alone pruned, from the first round."""
        return self._stages[0].curves

    @property
    def rounds(self) -> int:
        """Number of rounds in which curves were measured."""
        return len(self._stages)

    @property
    def stages(self) -> Sequence[_Stage]:
        """What was measured, round by round."""
        return self._stages

    def add(self, widths: dict[str, int], error: float, curves: dict[str, ErrorCurve]) -> None:
        """Add a stage: from these widths on, with this error at them, other curves hold."""
        self._stages.append(_Stage(widths, error, curves))

    def at(self, budget: Budget) -> TradeoffPoint:
        """The widths for a budget, which use it up to the last allowed width that fits.

        Raises:
            BudgetError: even the smallest widths cost more; the message says how much.
        """
        return self.within(budget, {type(budget): budget.limit(self._costs.of(type(budget)))})

    def within(self, budget: Budget, limits: Mapping[type[Budget], float]) -> TradeoffPoint:
        """The widths for several limits.

        Args:
            budget: Its savings guide the descent first.
            limits: Kind of budget -> largest cost, with an entry for ``budget``.

        Raises:
            BudgetError: even the smallest widths cost more; the message says how much.
        """
        kind = type(budget)
        point = self.below(kind, limits[kind], {other: limit for other, limit in limits.items() if other is not kind})
        if point is None:
            raise BudgetError(refusal(budget, self._costs, self._groups, self._width_rules))
        return point

    def below(
        self, kind: type[Budget], limit: float, also: Mapping[type[Budget], float] | None = None
    ) -> TradeoffPoint | None:
        """The widths at which a cost is at most ``limit``; None if even the smallest widths cost more.

        Args:
            kind: What ``limit`` counts.
            limit: Largest cost.
            also: Largest costs of other kinds. Where the widths for ``limit`` exceed one of them, a descent along its
                own savings goes on from there.
        """
        also = also or {}
        stages = [stage for stage in self._of(kind) if float(self._costs.of(kind, stage.widths)) > limit]
        stage = stages[-1] if stages else self._stages[0]
        descent = self._descent(kind, stage)
        while descent.cost > limit:
            if not descent.step(limit):
                return None
        for other, most in also.items():
            further = self._descent(other, stage, descent.widths)
            while further.cost > most:
                if not further.step(most):
                    return None
            descent = self._descent(kind, stage, further.widths)
        descent.give_back(limit, also)
        return self._point(kind, stage, descent)

    def points(self, kind: type[Budget]) -> list[TradeoffPoint]:
        """Corners of the trade-off from the full network down to the smallest one, at least 1/400 of the cost apart."""
        found: list[TradeoffPoint] = []
        apart = float(self._costs.of(kind)) / 400
        stages = self._of(kind)
        ends = [float(self._costs.of(kind, stage.widths)) for stage in stages[1:]]
        for stage, end in zip(stages, [*ends, 0.0], strict=True):
            descent = self._descent(kind, stage)
            while descent.cost > end:  # the next stage starts there
                if not found or found[-1].cost - descent.cost >= apart:
                    found.append(self._point(kind, stage, descent))
                if not descent.step(end):
                    break
            if stage is stages[-1] and (not found or descent.cost < found[-1].cost):
                found.append(self._point(kind, stage, descent))
        return found

    def _of(self, kind: type[Budget]) -> list[_Stage]:
        """The stages for a kind of budget; later stages hold only for the kind for which they were measured."""
        return self._stages if kind is self._kind else self._stages[:1]

    def _descent(self, kind: type[Budget], stage: _Stage, widths: Mapping[str, int] | None = None) -> Descent:
        """A descent from some widths, by default those at which the stage starts."""
        start = stage.widths if widths is None else widths
        return Descent(self._costs, kind, stage.curves, self.allowed, start, self._idle)

    def _point(self, kind: type[Budget], stage: _Stage, descent: Descent) -> TradeoffPoint:
        full = float(self._costs.of(kind))
        error = stage.error + descent.error
        return TradeoffPoint(descent.cost, descent.cost / max(full, 1e-300), error, dict(descent.widths))


POINTS = 2
"""Default number of measured widths per group; more measurements did not give better widths."""


@dataclass(frozen=True)
class Measurement:
    """Settings for measuring errors at the outputs.

    Attributes:
        points: Number of measured widths per group; width 0, where allowed, is one more.
        rounds: Number of rounds; the second of two starts halfway to the budget.
        error: Measure of the errors, ``"squared"`` or ``"kl"``; see ``output_errors``.
        images: Approximate number of images to run; None for all.
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
    width_rules: WidthRules,
    measurement: Measurement,
    *,
    progress: Progress,
    checkpoint: Checkpoint | None = None,
) -> Tradeoff:
    """Measure the error curves of all groups; several processes divide the groups among them.

    Args:
        graph: The captured network.
        images: Calibration images.
        groups: All groups.
        paths: One for each group, down to its smallest allowed width, with refitted weights.
        costs: Cost of the network as a function of widths.
        budget: Its kind decides what counts; rounds after the first start between the full network and it.
        width_rules: The user's restrictions on widths.
        measurement: Settings of the measurement.
        progress: Whether to show a progress bar.
        checkpoint: Folder in which errors are stored while they are measured, and from which a later call resumes.

    Raises:
        CheckpointError: a stored file is damaged or cannot be written.
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
    kind, processes = type(budget), images.processes
    tradeoff = Tradeoff(costs, kind, groups, width_rules, measurement.error)
    widths = largest(tradeoff.allowed)
    start = float(costs.of(kind, widths))
    limit = budget.limit(costs.of(kind))
    curves: dict[str, ErrorCurve] = {}
    for done in range(measurement.rounds):
        if done > 0:
            point = tradeoff.below(kind, start - max(start - limit, 0.0) * done / measurement.rounds)
            widths = widths if point is None else point.widths
        present = present_of(graph, groups, paths, widths)
        runs = list(measured_runs(graph, groups, paths, present, tradeoff.allowed, measurement.points, processes))
        *errors, already = errors_of([*(run.tensors for run in runs), {}], base=present.tensors or None)
        already = processes.gather(already)[0]
        own = [(run.group, run.removals, error - already) for run, error in zip(runs, errors, strict=True)]
        measured = curves_of(groups, paths, present, sorted(chain(*processes.gather(own))))
        removals = dict(zip(widths, present.removals, strict=True))
        curves = {name: _positive(curve, curves.get(name), removals[name]) for name, curve in measured.items()}
        tradeoff.add(widths, already, curves)
        if checkpoint is not None:
            page = {name: {"width": widths[name], "errors": curve.measured} for name, curve in measured.items()}
            with processes.together():
                checkpoint.keep_values(f"points-{done}", page, last=True)
    return tradeoff


def _positive(curve: ErrorCurve, before: ErrorCurve | None, start: int) -> ErrorCurve:
    """The measured curve; where it is zero, the curve of the round before, from ``start`` removals on.

    A curve is zero where the errors of the other groups hide the error of this one.
    """
    if before is None or curve.errors[-1] > 0 or before.errors[-1] == 0:
        return curve
    return ErrorCurve(np.maximum(before.errors - before.errors[start], 0.0), curve.measured)
