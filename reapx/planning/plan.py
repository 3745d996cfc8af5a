"""What is to be removed, and doing it: surgery, reconstruction, proof."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath

from torch import Tensor, nn

from ..allocation.curves import ErrorCurve
from ..allocation.descent import TradeoffPoint
from ..allocation.pro import Tradeoff
from ..calibration.images import Images
from ..calibration.processes import Processes
from ..capture.graph import Graph
from ..costs.budget import Budget
from ..costs.latency import Latency, measure_milliseconds
from ..errors import InputError
from ..groups.channel_groups import Frozen
from ..inspection.inspection import Inspection
from ..inspection.validation import check_damping, check_model, check_refits, check_settings
from ..reconstruction.sweep import LayerRefit
from ..selection.paths.path import Path
from ..selection.paths.weight_changes import cut_tensors
from ..surgery import storage
from ..surgery.cut import Kept, kept_positions
from ..surgery.proof import output_change
from ..text import frozen_text, latency_text, saving, share, show_bars, table
from .apply import remove
from .group_plan import GroupPlan, plan_groups, table_of

RECTIFY = 2
"""Default passes after each fit that leave out what a ReLU drops."""


@dataclass
class Plan:
    """What would be removed; nothing has been touched. ``print(plan)`` shows it, ``apply`` does it.

    Attributes:
        groups: One entry per prunable group.
        frozen: Channels that stay, and why.
        macs, params: (before, after).
        seconds: Time that planning took.
    """

    groups: list[GroupPlan]
    frozen: list[Frozen]
    macs: tuple[int, int]
    params: tuple[int, int]
    selection: str
    swaps: int
    positions: int | None
    allocation: str
    budget: Budget
    streams: bool
    damping: float
    seconds: float
    _model: nn.Module = field(repr=False)
    _found: Inspection = field(repr=False)
    _paths: Sequence[Path] = field(repr=False)
    _tradeoff: Tradeoff | None = field(default=None, repr=False)
    _point: TradeoffPoint | None = field(default=None, repr=False)

    def __str__(self) -> str:
        budget = f"{type(self.budget).__name__}({self.budget.amount})"
        lines = [
            f"Plan: {self.savings}",
            f"{self.method}, {self.allocation} allocation, budget {budget}, {self.seconds:.1f} s",
            *latency_text(self.budget, self.latency),
            "",
            table_of(self.groups, None if self._tradeoff is None else self._tradeoff.measure),
        ]
        if any(entry.group.residual_stream for entry in self.groups) and not self.streams:
            lines.append("Residual streams stay whole unless streams=True.")
        return "\n".join([*lines, *frozen_text(self.frozen)])

    @property
    def method(self) -> str:
        """How channels were chosen, in words."""
        text = f"{self.selection} selection"
        text += "" if self.swaps == 0 else f", at most {self.swaps} swaps a group"
        return text + ("" if self.positions is None else f", {self.positions} positions an image")

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
        if self.swaps:
            raise InputError("swaps refine the channels of one budget: call reapx.plan again, with resume=folder")
        if not self._found.costs.knows(budget):
            raise InputError(f"{budget!r} was not measured: call reapx.plan with it")
        start = time.perf_counter()
        point, costs = measured.at(budget), self._found.costs
        widths = point.widths
        return replace(
            self,
            groups=plan_groups(self._found.groups, self._paths, widths, measured),
            macs=(costs.macs(), costs.macs(widths)),
            params=(costs.params(), costs.params(widths)),
            budget=budget,
            seconds=time.perf_counter() - start,
            _point=point,
        )

    def _measured(self) -> Tradeoff:
        if self._tradeoff is None:
            raise InputError(f"allocation={self.allocation!r} measures no errors at the outputs: plan with 'pro'")
        return self._tradeoff

    def apply(
        self,
        *,
        reconstruct: bool = True,
        refit: str = "all",
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
            inplace: Change the user's model instead of a copy; done last, after the proof. Its parameters are new
                objects: make optimizers afterwards.
            progress: Show progress bars; by default when the terminal is one.

        Returns:
            The smaller module, its errors and its proof.

        Raises:
            NumericalError, CaptureError, ProofError: the model is as it was.
            InputError: it has changed since, or other processes call this with other arguments.
        """
        damping = self.damping if damping is None else damping
        processes = self._images.processes
        with processes.together():
            check_refits(refit, rectify)
            check_damping(damping)
            check_model(self._model)
            changed = self._graph.changed(self._model)
            if changed is not None:
                raise InputError(f"{changed} has changed since the plan was made: plan again")
        kept = [(entry.group.name, entry.removed.tolist()) for entry in self.groups]
        check_settings(processes, kept, reconstruct, refit, rectify, damping)
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
            changed={} if reconstruct else self._own_tensors(processes),
        )
        latency = self._latencies(found.model)
        change = output_change(found.model, self._graph, self._images)
        pruned = found.model
        if inplace:
            found.repeat(self._model)
            pruned = self._model
        return Result(pruned, self, found.fits, found.gap, change, time.perf_counter() - start, found.kept, latency)

    def _own_tensors(self, processes: Processes) -> dict[str, Tensor]:
        """What selection itself makes of the network's tensors."""
        pairs = zip(self._paths, self.groups, strict=True)
        own = [(path.own_changes, len(entry.removed)) for path, entry in pairs if path.own_changes is not None]
        made = cut_tensors(self._graph.tensors, [changes.changes([count])[0] for changes, count in own], own)
        return {name: processes.share(value) for name, value in made.items()}

    def _latencies(self, pruned: nn.Module) -> tuple[float, float, float] | None:
        """Measured in turn, since a machine's speed drifts: before, predicted at that speed, after."""
        if self.latency is None or not isinstance(self.budget, Latency):
            return None
        models, batch = [self._model, pruned], self.budget.batch
        before, after = self._images.processes.first(lambda: measure_milliseconds(models, self._images, batch))
        return before, self.latency[1] * before / self.latency[0], after


@dataclass
class Result:
    """A pruned network.

    Attributes:
        model: The smaller module.
        plan: What was planned.
        fits: Each refitted layer's error before and after, as shares of its target's variance.
        gap: Largest difference between the module and the masked original with the same refitted weights, a share
            of the largest output: the proof that surgery was exact.
        change: How far the outputs are from the original network's on the first images: mean squared difference over
            the variance of the original's outputs.
        seconds: Time that apply took.
        kept: Qualified parameter name -> axis -> positions that stayed.
        latency: Milliseconds of a batch: (before, predicted, measured after); None unless the budget is a latency.
    """

    model: nn.Module
    plan: Plan
    fits: list[LayerRefit]
    gap: float
    change: float
    seconds: float
    kept: Kept
    latency: tuple[float, float, float] | None = None

    def __str__(self) -> str:
        lines = [
            f"Pruned: {self.plan.savings}",
            f"outputs differ from the original's by {share(self.change)} of their variance; "
            f"pruned equals masked to {self.gap:.0e}; {self.seconds:.1f} s",
            *latency_text(self.plan.budget, self.latency),
        ]
        if self.fits:
            rows = [[fit.layer, share(fit.before), share(fit.error)] for fit in self.fits]
            lines += ["", table(rows, ["refitted layer", "error before its refit", "after"])]
        return "\n".join(lines)

    def save(self, folder: str | FilePath) -> None:
        """Write ``plan.json`` and ``weights.safetensors`` into a folder; read them with ``reapx.load``."""
        storage.save(folder, self.model, self.kept, str(self.plan))
