"""A plan: what is to be removed, and its application."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

from torch import nn

from ..allocation.descent import TradeoffPoint
from ..allocation.pro import Tradeoff
from ..calibration.progress import OnProgress, progress_of
from ..capture.precision import plain_mode
from ..costs.budget import Budget
from ..errors import InputError
from ..inspection.argument_checks import RefitLayers, check_arguments
from ..inspection.inspection import Inspection
from ..inspection.model_checks import check_model
from ..inspection.validation import check_settings
from ..removal.timed_networks import Limits, meet
from ..selection.paths.path import Path
from ..text import listed
from . import saved_plan
from .apply import Result, carry_out, own_tensors
from .group_plan import Units, plan_groups, replaced
from .plan_state import PlanState
from .settings import RECTIFY


def met_point(
    model: nn.Module, found: Inspection, tradeoff: Tradeoff, budgets: Sequence[Budget]
) -> tuple[TradeoffPoint, tuple[float, float] | None]:
    """The widths of a trade-off that meet all budgets, and milliseconds (before, after) where they were timed."""

    def propose(limits: Limits) -> dict[str, int]:
        return tradeoff.within(budgets[0], limits).widths

    met = meet(model, found, budgets, tradeoff.allowed, propose)
    return tradeoff.within(budgets[0], met.limits), met.latency


@dataclass(frozen=True, eq=False, repr=False)
class Plan(PlanState):
    """What is to be removed from a model, which is not changed yet. ``print`` a plan, then ``apply`` it.

    Attributes:
        settings: The settings with which ``reapx.plan`` was called.
        groups: One entry for each prunable group.
        frozen: Channels that cannot be removed, and why.
        macs, params: MACs per image and parameters, each (before, after).
        seconds: Seconds that planning took.
        chosen: Names of the groups whose units the caller chose; see ``with_removed``.
    """

    def at(self, budget: Budget | Sequence[Budget]) -> Plan:
        """This plan at another budget, or at several, from the same measurements; a latency is timed at new widths.

        Raises:
            InputError: the plan's allocation is not ``"pro"``, its selection was refined by swaps, or the budget is a
                latency that was not measured.
            BudgetError: the budget cannot be reached; the message names the smallest that can.
        """
        measured = self._measured()
        if self._stored is not None:
            raise InputError("a plan that was loaded stays at its budget: call reapx.plan again, with resume=folder")
        if self.chosen:
            raise InputError(
                f"units of {listed(sorted(self.chosen), 3)} are the caller's choice: call reapx.plan again"
            )
        if self.settings.swaps:
            raise InputError("swaps refine the channels of one budget: call reapx.plan again, with resume=folder")
        settings, costs = replace(self.settings, budget=budget), self._found.costs
        for own in settings.budgets:
            if not costs.knows(own):
                raise InputError(f"{own!r} was not measured: call reapx.plan with it")
        start = time.perf_counter()
        point, latency = met_point(self._model, self._found, measured, settings.budgets)
        widths = point.widths
        return replace(
            self,
            settings=settings,
            groups=plan_groups(self._found.groups, self._paths, widths, measured),
            macs=(costs.macs(), costs.macs(widths)),
            params=(costs.params(), costs.params(widths)),
            seconds=time.perf_counter() - start,
            _point=point,
            _timed=latency,
        )

    def with_removed(self, removed: Mapping[str, Units]) -> Plan:
        """This plan with units that the caller chose in some groups; ``apply`` refits and proves it as any other plan.

        The budget is not checked: ``macs`` and ``params`` show the cost. Errors of these groups are not predicted
            (NaN).

        Args:
            removed: Group name -> the units that leave, numbers from 0 below ``group.size`` in any order. Groups that
                are not named lose what they lost before.

        Raises:
            InputError: no group has such a name; units are not whole numbers, occur twice or do not exist; or all
                units leave a group that cannot leave as a whole. The message names the group.
        """
        if self._stored is not None and self._stored.own:
            raise InputError(
                f"a loaded plan with selection={self.settings.selection!r}, which changes weights by itself, keeps its "
                "units: choose yours before it is saved"
            )
        groups = replaced(self.groups, removed, self._found.droppable)
        paths = zip(groups, self._paths, strict=True)
        widths, costs = {entry.group.name: entry.kept for entry in groups}, self._found.costs
        return replace(
            self,
            groups=groups,
            macs=(costs.macs(), costs.macs(widths)),
            params=(costs.params(), costs.params(widths)),
            chosen=self.chosen | set(removed),
            _paths=[Path.unmeasured(each.removed) if each.group.name in removed else path for each, path in paths],
            _point=None,
            _timed=None,
            _stored=None if self._stored is None else replace(self._stored, latency=None),
        )

    def save(self, folder: str | FilePath) -> None:
        """Write the plan into a folder as JSON and safetensors; ``reapx.load_plan`` reads it.

        The folder holds the removed units, the predicted errors and PRO's measurements, but neither the model nor the
        images. With several processes, only the first should write it.

        Raises:
            InputError: the folder is a file.
            CheckpointError: the folder cannot be written; what it held before is unchanged.
        """
        own = self._stored.own if self._stored is not None else own_tensors(self._graph, self._paths, self.groups)
        saved_plan.write_plan(folder, saved_plan.page_of(self), own)

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
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Remove the channels, refit by least squares, and prove the result.

        Where a group leaves as a whole, layers without outputs become ``Empty``, norms ``nn.Identity``, and layers
        without inputs a trainable ``Constant``, into which the batch norm behind is folded.

        Args:
            reconstruct: Whether to refit weights. Without a refit, channels are only removed; selection ``"nu"`` then
                folds each into its partner, and ``"thinet"`` scales the remaining ones. The plan's widths and predicted
                errors assume a refit in any case.
            refit: ``"all"`` refits every layer behind the first removal; ``"consumers"`` only those that read pruned
                channels.
            rectify: Number of passes over the images after each fit, which weigh every value by how much of it the
                activation passes on; 0 for plain least squares.
            damping: Pull towards the old weights, as a fraction of the mean diagonal of each Gram matrix; by default
                the plan's damping.
            inplace: Change the user's model instead of a copy; done last, after the proof, as a whole or not at all.
                Parameters stay the objects they are; ``reapx.carry_state`` cuts the state of their optimizer.
            progress: Show progress bars; by default on a terminal and in a notebook, if there is no ``on_progress``.
            on_progress: Called as ``on_progress(step, done, total)``, as for ``reapx.plan``; by default the plan's.

        Returns:
            The smaller module, its errors and its proof.

        Raises:
            InputError: an argument is not allowed, the model is in train mode or has changed, or processes differ.
            NumericalError: an activation is NaN or infinite, or a least-squares system is singular at this damping.
            CaptureError: torch.export refuses the pruned model, or forward() runs other operators with fewer channels.
            ProofError: the pruned module does not compute what the masked original computes.

        The model is unchanged in all these cases.
        """
        damping = self.settings.damping if damping is None else damping
        processes = self._images.processes
        with processes.together():
            check_arguments(reconstruct=reconstruct, refit=refit, rectify=rectify, damping=damping)
            check_arguments(inplace=inplace, progress=progress, on_progress=on_progress)
            check_model(self._model)
            changed = self._graph.changed(self._model)
            if changed is not None:
                raise InputError(f"{changed} has changed since the plan was made: plan again")
        kept = [(entry.group.name, entry.removed.tolist()) for entry in self.groups]
        check_settings(processes, (kept, reconstruct, refit, rectify, damping))
        return carry_out(
            self,
            refit=refit if reconstruct else None,
            damping=damping,
            rectify=rectify,
            inplace=inplace,
            progress=progress_of(progress, on_progress or self.settings.on_progress, told=processes.rank == 0),
        )
