"""What is to be removed, and doing it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from ..allocation.curves import ErrorCurve
from ..allocation.descent import TradeoffPoint
from ..allocation.pro import Tradeoff
from ..calibration.images import Images
from ..capture.graph import Graph
from ..capture.precision import plain_mode
from ..costs.budget import Budget
from ..costs.latency import Latency, measure_milliseconds
from ..errors import InputError
from ..groups.channel_groups import Frozen
from ..inspection.argument_checks import RefitLayers, check_arguments
from ..inspection.inspection import Inspection
from ..inspection.validation import check_model, check_settings
from ..selection.paths.path import Path
from ..surgery.cut import Kept, kept_positions
from ..surgery.proof import output_change
from ..text import frozen_text, latency_text, listed, saving, show_bars
from .apply import own_tensors, remove
from .group_plan import GroupPlan, Units, chosen_units, plan_groups, table_of
from .result import Result
from .settings import RECTIFY, PlanSettings


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """What would be removed; nothing has been touched. ``print(plan)`` shows it, ``apply`` does it.

    Attributes:
        settings: What ``reapx.plan`` was called with.
        groups: One entry per prunable group.
        frozen: Channels that stay, and why.
        macs, params: (before, after).
        seconds: Time that planning took.
        chosen: Names of the groups whose units the caller chose; see ``with_removed``.
    """

    settings: PlanSettings
    groups: tuple[GroupPlan, ...]
    frozen: tuple[Frozen, ...]
    macs: tuple[int, int]
    params: tuple[int, int]
    seconds: float
    _model: nn.Module
    _found: Inspection
    _paths: Sequence[Path]
    _tradeoff: Tradeoff | None = None
    _point: TradeoffPoint | None = None
    chosen: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        cut = sum(len(entry.removed) > 0 for entry in self.groups)
        return f"Plan({self.savings}; {cut} of {len(self.groups)} groups lose channels; {self.settings.method})"

    def __str__(self) -> str:
        lines = [
            f"Plan: {self.savings}",
            f"{self.method}, {self.seconds:.1f} s",
            *latency_text(self.budget, self.latency),
            "",
            table_of(self.groups, None if self._tradeoff is None else self._tradeoff.measure),
        ]
        if any(entry.group.residual_stream for entry in self.groups) and not self.settings.prunes_streams:
            lines.append("Residual streams stay whole unless streams=True.")
        return "\n".join([*lines, *frozen_text(self.frozen)])

    @property
    def budget(self) -> Budget:
        """What the network may cost."""
        return self.settings.budget

    @property
    def method(self) -> str:
        """How channels were chosen, and within what budget, in words."""
        chosen = f", units of {listed(sorted(self.chosen), 3)} chosen by the caller" if self.chosen else ""
        return self.settings.method + chosen

    @property
    def savings(self) -> str:
        """MACs and parameters before and after, in words."""
        return f"{saving('MACs', self.macs)}, {saving('parameters', self.params)}"

    def kept(self) -> Kept:
        """Qualified parameter name -> axis -> positions that stay."""
        removed = {entry.group.name: entry.removed for entry in self.groups}
        return kept_positions([entry.group for entry in self.groups], removed, self._graph.tensors)

    @property
    def latency(self) -> tuple[float, float] | None:
        """Milliseconds of a batch: (before, predicted after); None unless the budget is a latency."""
        if not isinstance(self.budget, Latency):
            return None
        widths = {entry.group.name: entry.kept for entry in self.groups}
        kind, costs = type(self.budget), self._found.costs
        return float(costs.of(kind)), float(costs.of(kind, widths))

    @property
    def output_measure(self) -> str:
        """What errors at the network's outputs are: ``"squared"`` or ``"kl"``."""
        return "squared" if self._tradeoff is None else self._tradeoff.measure

    @property
    def _graph(self) -> Graph:
        return self._found._graph

    @property
    def _images(self) -> Images:
        return self._found._images

    @property
    def output_error(self) -> float:
        """Sum of the groups' errors at the network's outputs, each pruned alone; NaN if they were not measured.

        It ranks plans. ``apply`` repairs much of it, so that the pruned network's own error is smaller.
        """
        return float("nan") if self._point is None else self._point.error

    def curves(self) -> dict[str, ErrorCurve]:
        """Group name -> error at the network's outputs as this group alone is pruned.

        Raises:
            InputError: the allocation does not measure it.
        """
        return self._measured().curves

    def tradeoff(self) -> list[TradeoffPoint]:
        """The way from the full network down to the smallest one: cost, predicted error and widths at every corner.

        Costs nothing: it follows from what was measured. ``at`` makes a plan of any budget on it.

        Raises:
            InputError: the allocation measures no errors.
        """
        return self._measured().points(type(self.budget))

    def at(self, budget: Budget) -> Plan:
        """This plan at another budget, from the same measurements.

        Raises:
            InputError: the allocation measures no errors, the plan refined its selection by swaps, or a latency was not
                measured.
            BudgetError: the budget cannot be reached; says the smallest that can.
        """
        measured = self._measured()
        if self.chosen:
            raise InputError(
                f"units of {listed(sorted(self.chosen), 3)} are the caller's choice: call reapx.plan again"
            )
        if self.settings.swaps:
            raise InputError("swaps refine the channels of one budget: call reapx.plan again, with resume=folder")
        if not self._found.costs.knows(budget):
            raise InputError(f"{budget!r} was not measured: call reapx.plan with it")
        start = time.perf_counter()
        point, costs = measured.at(budget), self._found.costs
        widths = point.widths
        return replace(
            self,
            settings=replace(self.settings, budget=budget),
            groups=plan_groups(self._found.groups, self._paths, widths, measured),
            macs=(costs.macs(), costs.macs(widths)),
            params=(costs.params(), costs.params(widths)),
            seconds=time.perf_counter() - start,
            _point=point,
        )

    def with_removed(self, removed: Mapping[str, Units]) -> Plan:
        """This plan with units of the caller's own choice, which ``apply`` refits and proves like any others.

        The budget is not asked: ``macs`` and ``params`` say what the choice costs. What it does to the outputs is not
        predicted (NaN).

        Args:
            removed: Group name -> the units that leave, numbers from 0 below ``group.size`` in any order; none stays
                out of an empty list. Groups that are not named lose what they lost before.

        Raises:
            InputError: no group has that name, units are no whole numbers, occur twice or are not there, or all leave
                a group that cannot go as a whole; names the group.
        """
        entries, droppable = {entry.group.name: entry for entry in self.groups}, self._found.droppable
        found = {name: chosen_units(entries, name, units, droppable) for name, units in removed.items()}
        paths = zip(entries, self._paths, strict=True)
        groups = tuple(
            GroupPlan(entry.group, entry.group.size - len(found[name]), math.nan, found[name])
            if name in found
            else entry
            for name, entry in entries.items()
        )
        widths, costs = {entry.group.name: entry.kept for entry in groups}, self._found.costs
        return replace(
            self,
            groups=groups,
            macs=(costs.macs(), costs.macs(widths)),
            params=(costs.params(), costs.params(widths)),
            chosen=self.chosen | set(found),
            _paths=[Path.unmeasured(found[name]) if name in found else path for name, path in paths],
            _point=None,
        )

    def _measured(self) -> Tradeoff:
        if self._tradeoff is None:
            raise InputError(
                f"allocation={self.settings.allocation!r} measures no errors at the outputs: plan with 'pro'"
            )
        return self._tradeoff

    @plain_mode()
    def apply(
        self,
        *,
        reconstruct: bool = True,
        refit: RefitLayers = "all",
        rectify: int = RECTIFY,
        damping: float | None = None,
        inplace: bool = False,
        progress: bool | None = None,
    ) -> Result:
        """Remove the channels, refit by least squares, and prove the result.

        Where a group leaves as a whole, layers without outputs become ``Empty``, norms without channels
        ``nn.Identity``, and layers without inputs a trainable ``Constant``, which takes in the batch norm behind it.

        Args:
            reconstruct: Whether to refit at all. Without it channels are only removed; selection ``"nu"`` still folds
                each into the one that emulates it, and ``"thinet"`` scales those that stay. The plan's widths and
                predicted errors are those of refits all the same.
            refit: ``"all"`` refits every layer behind the first removal, ``"consumers"`` only
                those that read pruned channels.
            rectify: Passes over the images after each fit whose target leaves out what a ReLU drops anyway; 0 for
                plain least squares.
            damping: Pull towards the old weights, a fraction of the mean diagonal of each Gram matrix; the plan's
                by default.
            inplace: Change the user's model instead of a copy; done last, after the proof, as a whole or not at all.
                Parameters stay the objects they are; ``reapx.carry_state`` cuts the state of their optimizer.
            progress: Show progress bars; by default when the terminal is one.

        Returns:
            The smaller module, its errors and its proof.

        Raises:
            NumericalError, CaptureError, ProofError: the model is as it was.
            InputError: it has changed since, or other processes call this with other arguments.
        """
        damping = self.settings.damping if damping is None else damping
        processes = self._images.processes
        with processes.together():
            check_arguments(reconstruct=reconstruct, refit=refit, rectify=rectify, damping=damping)
            check_arguments(inplace=inplace, progress=progress)
            check_model(self._model)
            changed = self._graph.changed(self._model)
            if changed is not None:
                raise InputError(f"{changed} has changed since the plan was made: plan again")
        kept = [(entry.group.name, entry.removed.tolist()) for entry in self.groups]
        check_settings(processes, (kept, reconstruct, refit, rectify, damping))
        start = time.perf_counter()
        found = remove(
            self._model,
            self._graph,
            [entry.group for entry in self.groups],
            {entry.group.name: entry.removed for entry in self.groups},
            self._images,
            refit=refit if reconstruct else None,
            damping=damping,
            rectify=rectify,
            progress=show_bars(progress) and processes.rank == 0,
            changed={} if reconstruct else own_tensors(self._graph, self._paths, self.groups, processes),
        )
        latency = self._measured_latency(found.model)
        change = output_change(found.model, self._graph, self._images)
        pruned = self._model if inplace else found.model
        fits, seconds = tuple(found.fits), time.perf_counter() - start
        result = Result(pruned, self, fits, found.gap, change, seconds, found.kept, found.original, latency)
        if inplace:  # last, so that whatever fails or interrupts leaves the model as it was
            found.repeat(self._model)
        return result

    def _measured_latency(self, pruned: nn.Module) -> tuple[float, float, float] | None:
        """Measured in turn, since a machine's speed drifts: before, predicted at that speed, after."""
        if self.latency is None or not isinstance(self.budget, Latency):
            return None
        models, batch = [self._model, pruned], self.budget.batch
        before, after = self._images.processes.first(lambda: measure_milliseconds(models, self._images, batch))
        return before, self.latency[1] * before / self.latency[0], after
