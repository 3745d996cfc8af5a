"""The two calls: ``plan``, which touches nothing, and ``prune``, which plans and applies."""

from __future__ import annotations

from pathlib import Path as FilePath

from torch import nn

from ..allocation.output_errors import OutputError
from ..allocation.pro import POINTS
from ..calibration.processes import processes_of
from ..capture.precision import plain_mode
from ..costs.budget import Budget
from ..inspection.argument_checks import Allocation, Bounds, Layers, RefitLayers, check_arguments
from ..inspection.validation import bounds_by_name, check_settings, layer_names
from ..selection.methods import Selection
from .pipeline import make_plan
from .plan import Plan
from .result import Result
from .settings import DAMPING, RECTIFY, PlanSettings


@plain_mode()
def plan(
    model: nn.Module,
    images: object,
    *,
    budget: Budget,
    allocation: Allocation = "pro",
    selection: Selection = "reap",
    streams: bool | None = None,
    round_to: int = 1,
    exclude: Layers = (),
    bounds: Bounds | None = None,
    points: int = POINTS,
    rounds: int = 1,
    output_error: OutputError = "squared",
    damping: float = DAMPING,
    swaps: int = 0,
    positions: int | None = None,
    resume: str | FilePath | None = None,
    memory: int | None = None,
    progress: bool | None = None,
    distributed: bool = False,
) -> Plan:
    """Find out which channels to remove; nothing is touched.

    Args:
        model: Module in eval mode.
        images: A tensor (images, ...) or an iterable of batches: tensors, tuples whose first item is the
            input, or dicts of keyword arguments. No labels.
        budget: ``MACs(0.5)``, ``Params(0.4)``, ``Latency(0.6)``; fractions of the original or absolute numbers.
        allocation: How many channels each group keeps: ``"pro"`` (by the errors that each group's pruning causes at
            the network's outputs) or ``"uniform"`` (one ratio for all).
        selection: Which channels leave. ``"reap"``: each the one that costs least after least squares; the one to take.
            It pays where few channels are left. ``"nu"``: those that another emulates, into which they are folded;
            close to REAP, and still of use where nothing is refitted (``reconstruct=False``), as is ``"thinet"``
            (least contribution; the others are scaled). ``"magnitude"``: smallest incoming weights, without a look at
            data; the quickest, and often enough where every layer is refitted. To compare with: ``"lasso"`` (CP;
            needs scikit-learn), ``"dpp"`` (diverse), ``"output_norm"`` (OP; smallest outgoing weights). All but the
            two norms look at the same Gram matrices, which take longer than the choice. Any goes with any allocation;
            with ``"pro"``, which asks for all widths at once, ``"lasso"`` and ``"dpp"`` give one nested order: by entry
            into the LASSO's path, and greedily by determinant.
        streams: Whether residual streams lose channels too; by default if the allocation is ``"pro"``.
        round_to: Kept widths are multiples of this.
        exclude: Layer names, patterns (``"layer3.*"``) or modules whose output channels stay.
        bounds: Layer name, pattern or module -> (fewest, most) of its output channels that stay: shares such as
            ``(0.25, 1.0)``, or whole numbers of channels. A branch that must keep something does not leave as a whole.
        points: Widths of each group at which the error at the outputs is measured, besides width 0 (``"pro"`` only);
            between them, it follows the group's own path.
        rounds: Measure again on the way to the budget, this often in all (``"pro"`` only).
        output_error: ``"squared"``: mean squared difference of the outputs before a softmax; ``"kl"``:
            Kullback-Leibler divergence of their softmax (``"pro"`` only).
        damping: λ as a fraction of the mean diagonal of each Gram matrix.
        swaps: After selection, exchange up to this many removed channels of each group for kept ones, as long as the
            reconstruction error falls (``"reap"`` only).
        positions: Measure only this many random positions of each feature map for selection, the same on every run;
            all by default. Layers that read vectors or tokens measure all.
        resume: A folder for what is measured. After a kill, the same call with the same folder goes on from there.
        memory: Bytes of the device's memory for images, and for activations, before they go to disk; by default 512 MB
            on the CPU and at most an eighth of what is free on a GPU.
        progress: Show progress bars; by default when the terminal is one. Of several processes, the first does.
        distributed: Share the work with the other processes of ``torch.distributed``'s default group. All call this,
            and then ``apply``, with the same model and arguments and each with its own images. All get the plan and the
            network that one process makes of all batches, rank 0's first, but for the order in which sums are added up.

    Returns:
        The plan; ``print`` it, then ``apply`` it.

    Raises:
        InputError: images or arguments cannot be used, the model is in train mode, or processes have other models.
        CaptureError: torch.export refuses the model.
        BudgetError: the budget cannot be reached; says the smallest that can.
        NumericalError: NaN or Inf in an activation, a singular Gram matrix, or processes that round differently.
    """
    check_arguments(distributed=distributed)
    processes = processes_of(distributed, model)
    with processes.together():
        settings = PlanSettings(
            budget=budget,
            allocation=allocation,
            selection=selection,
            streams=streams,
            round_to=round_to,
            exclude=layer_names(model, exclude),
            bounds=bounds_by_name(model, {} if bounds is None else bounds),
            points=points,
            rounds=rounds,
            output_error=output_error,
            damping=damping,
            swaps=swaps,
            positions=positions,
            resume=resume,
            memory=memory,
            progress=progress,
            distributed=distributed,
        )
    check_settings(processes, settings.shared())
    return make_plan(model, images, settings)


def prune(
    model: nn.Module,
    images: object,
    *,
    budget: Budget,
    allocation: Allocation = "pro",
    selection: Selection = "reap",
    streams: bool | None = None,
    round_to: int = 1,
    exclude: Layers = (),
    bounds: Bounds | None = None,
    points: int = POINTS,
    rounds: int = 1,
    output_error: OutputError = "squared",
    damping: float = DAMPING,
    swaps: int = 0,
    positions: int | None = None,
    resume: str | FilePath | None = None,
    memory: int | None = None,
    progress: bool | None = None,
    distributed: bool = False,
    reconstruct: bool = True,
    refit: RefitLayers = "all",
    rectify: int = RECTIFY,
    inplace: bool = False,
) -> Result:
    """``reapx.plan`` and ``Plan.apply`` in one call.

    Args:
        reconstruct, refit, rectify, inplace: As for ``Plan.apply``.
        damping, progress: For both.
        budget and all others: As for ``reapx.plan``.

    Returns:
        The smaller module, its errors and its proof.

    Raises:
        InputError, CaptureError, BudgetError, NumericalError: As ``reapx.plan`` and ``Plan.apply``.
        ProofError: the smaller module does not compute what the masked original does; the model is as it was.
    """
    check_arguments(distributed=distributed)
    with processes_of(distributed, model).together():
        check_arguments(reconstruct=reconstruct, refit=refit, rectify=rectify, inplace=inplace)
    planned = plan(
        model,
        images,
        budget=budget,
        allocation=allocation,
        selection=selection,
        streams=streams,
        round_to=round_to,
        exclude=exclude,
        bounds=bounds,
        points=points,
        rounds=rounds,
        output_error=output_error,
        damping=damping,
        swaps=swaps,
        positions=positions,
        resume=resume,
        memory=memory,
        progress=progress,
        distributed=distributed,
    )
    return planned.apply(
        reconstruct=reconstruct, refit=refit, rectify=rectify, damping=damping, inplace=inplace, progress=progress
    )
