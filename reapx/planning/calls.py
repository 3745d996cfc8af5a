"""The two calls: ``plan``, which touches nothing, and ``prune``, which plans and applies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath

from torch import nn

from ..allocation.output_errors import OutputError
from ..allocation.pro import POINTS
from ..calibration.processes import processes_of
from ..calibration.progress import OnProgress
from ..capture.precision import plain_mode
from ..costs.budget import Budget, MACs
from ..errors import InputError
from ..inspection.argument_checks import Allocation, Bounds, GivenWidths, Layers, RefitLayers, check_arguments
from ..inspection.validation import bounds_by_name, check_settings, layer_names, widths_by_name
from ..selection.methods import Selection, SelectionRule
from .apply import Result
from .pipeline import make_plan
from .plan import Plan
from .settings import RECTIFY, PlanSettings

NO_LIMIT = MACs(1.0)
"""The budget where the caller gives the widths: the full network."""


def plan(
    model: nn.Module,
    images: object,
    *,
    budget: Budget | Sequence[Budget] | None = None,
    allocation: Allocation | GivenWidths = "pro",
    selection: Selection | SelectionRule = "reap",
    streams: bool | None = None,
    round_to: int = 1,
    exclude: Layers = (),
    bounds: Bounds | None = None,
    points: int = POINTS,
    rounds: int = 1,
    output_error: OutputError = "squared",
    damping: float | None = None,
    swaps: int = 0,
    positions: int | None = None,
    resume: str | FilePath | None = None,
    memory: int | None = None,
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
    distributed: bool = False,
) -> Plan:
    """Plan which channels to remove; the model is not changed.

    Args:
        model: Module in eval mode.
        images: A tensor (images, ...) or an iterable of batches: tensors; tuples whose first
            items are the arguments that forward() requires, so that labels behind them do not matter; or dicts of
            keyword arguments. Arguments may be lists and dicts of tensors, with constants beside them, and token ids.
        budget: ``MACs(0.5)``, ``Params(0.4)``, ``Size(0.4)`` or ``Latency(0.6)``; a fraction of the original or an
            absolute number. Or several of different kinds, as a list; all are met. It may be omitted where
            ``allocation`` gives the widths.
        allocation: Chooses the number of channels that each group keeps. ``"pro"`` chooses by the errors at the
            network's outputs that pruning each group causes; ``"uniform"`` takes one ratio for all groups. Or give the
            widths: a dict from layer names, patterns or modules to whole numbers of output channels, or to shares such
            as 0.5, which become the nearest allowed width. Where several entries match a group, the last one holds;
            groups without an entry stay whole.
        selection: Chooses the channels that leave. ``"reap"`` (recommended) removes the channel that costs least after
            least squares, one by one; it helps most where few channels remain. ``"nu"`` folds each channel into another
            that emulates it. It is close to REAP, and useful without a refit as well (``reconstruct=False``), as is
            ``"thinet"``, which removes the least contributions and scales the others. ``"magnitude"`` removes the
            smallest incoming weights, without data; it is the fastest, and often good enough where every layer is
            refitted. For comparison there are ``"lasso"`` (CP; needs scikit-learn), ``"dpp"`` (a diverse sample) and
            ``"output_norm"`` (OP; smallest outgoing weights, without data). All but the two norms use the same Gram
            matrices, whose measurement takes longer than the selection. Every selection works with every allocation.
            ``"pro"`` needs nested selections for all widths, so ``"lasso"`` then orders channels by their entry into
            the LASSO's path, and ``"dpp"`` greedily by determinant.
            Or give a function ``(group, moments, weights)``, which is called for each group with the moments of each
            of its consumers' inputs (about the mean where an intercept is fitted) and their weights (outputs, features)
            float64, rows scaled by the norm that follows. It returns floating-point scores, one for each unit, of which
            the smallest leave first; or integers, the units in the order in which they leave.
        streams: Whether residual streams may lose channels; by default if the allocation is not ``"uniform"``.
        round_to: Kept widths are multiples of this number of channels.
        exclude: Layer names, patterns (``"layer3.*"``) or modules whose output channels stay.
        bounds: Layer name, pattern or module -> (fewest, most) of its output channels that stay: shares such as
            ``(0.25, 1.0)``, or whole numbers of channels. A branch with a bound above 0 does not leave as a whole.
        points: Number of widths of each group at which errors at the outputs are measured, besides width 0 (``"pro"``
            only). Between them, the error follows the reconstruction error of the group's path.
        rounds: Number of rounds of measurements; rounds after the first start closer to the budget (``"pro"`` only).
        output_error: ``"squared"`` for the mean squared difference of the outputs before a softmax; ``"kl"`` for the
            Kullback-Leibler divergence of their softmax (``"pro"`` only).
        damping: λ, the pull towards the old weights, as a fraction of the mean diagonal of each Gram matrix. By default
            each layer's refit takes the damping with the smallest error on held-out images.
        swaps: After selection, exchange up to this many removed channels of each group for kept ones, as long as the
            reconstruction error falls (``"reap"`` only).
        positions: Number of random positions of each feature map to measure for selection, the same on every run; None
            for all. Layers that read vectors or tokens are measured at all positions.
        resume: Folder in which measurements are stored. If a call is interrupted, the same call with the same folder
            continues from there.
        memory: Bytes of the device's memory for images, and again for activations, before they move to disk; by default
            512 MB on the CPU, and at most an eighth of the free memory on a GPU.
        progress: Whether to show progress bars; by default if stderr is a terminal and there is no ``on_progress``.
            With several processes, only the first shows them.
        on_progress: Called as ``on_progress(step, done, total)`` at the start of a step and whenever more of it is
            done. An error that it raises ends the call. ``logging.getLogger("reapx")`` logs the steps and their times
            at level INFO.
        distributed: Whether to share the work with the other processes of ``torch.distributed``'s default group. All of
            them call this function and then ``apply``, with the same model and arguments, each with its own images. All
            get the same plan and network as a single process with all batches (those of rank 0 first), up to the order
            in which sums are added.

    Returns:
        The plan; ``print`` it, then ``apply`` it.

    Raises:
        InputError: an argument is not allowed, images cannot be used, the model is in train mode or does not run on
            them, no channel can be removed, ``resume`` holds measurements of another call, or processes have different
            models or arguments.
        CaptureError: torch.export refuses the model, or the model fixes its batch size.
        BudgetError: the budget cannot be reached; the message names the smallest that can.
        NumericalError: an activation is NaN or infinite, a Gram matrix is singular at this damping, or processes round
            differently.
        CheckpointError: a file in ``resume`` is damaged or cannot be written.
        BackendError: there are no kernels for the model's device.
    """
    check_arguments(distributed=distributed)
    processes = processes_of(distributed, model)
    with processes.together():
        check_arguments(allocation=allocation)
        settings = PlanSettings(
            budget=NO_LIMIT if budget is None and not isinstance(allocation, str) else budget,  # type: ignore[arg-type]
            allocation=allocation if isinstance(allocation, str) else widths_by_name(model, allocation),
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
            on_progress=on_progress,
            distributed=distributed,
        )
    check_settings(processes, settings.shared())
    with plain_mode():
        return make_plan(model, images, settings)


def prune(
    model: nn.Module,
    images: object,
    *,
    budget: Budget | Sequence[Budget] | None = None,
    allocation: Allocation | GivenWidths = "pro",
    selection: Selection | SelectionRule = "reap",
    streams: bool | None = None,
    round_to: int = 1,
    exclude: Layers = (),
    bounds: Bounds | None = None,
    points: int = POINTS,
    rounds: int = 1,
    output_error: OutputError = "squared",
    damping: float | None = None,
    swaps: int = 0,
    positions: int | None = None,
    resume: str | FilePath | None = None,
    memory: int | None = None,
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
    distributed: bool = False,
    reconstruct: bool = True,
    refit: RefitLayers = "all",
    rectify: int = RECTIFY,
    inplace: bool = False,
    refine: bool = False,
) -> Result:
    """``reapx.plan`` and ``Plan.apply`` in one call, and ``Result.refine`` if wanted.

    Args:
        refine: Whether to train the pruned network to follow the original afterwards, on the same images; for other
            images and settings call ``Result.refine``.
        reconstruct, refit, rectify, inplace: As for ``Plan.apply``.
        damping, progress, on_progress: For both.
        budget and all other arguments: As for ``reapx.plan``.

    Returns:
        The smaller module, its errors and its proof.

    Raises:
        InputError: an argument is not allowed, images cannot be used, the model is in train mode or does not run on
            them, no channel can be removed, or processes have different models or arguments.
        CaptureError: torch.export refuses the model, or forward() runs other operators with fewer channels.
        BudgetError: the budget cannot be reached; the message names the smallest that can.
        NumericalError: an activation is NaN or infinite, or a Gram matrix is singular at this damping.
        CheckpointError: a file in ``resume`` is damaged or cannot be written.
        BackendError: there are no kernels for the model's device.
        ProofError: the smaller module does not compute what the masked original computes.

    The model is unchanged in all these cases.
    """
    check_arguments(distributed=distributed)
    with processes_of(distributed, model).together():
        check_arguments(reconstruct=reconstruct, refit=refit, rectify=rectify, inplace=inplace, refine=refine)
        if refine and inplace:
            raise InputError("refine=True needs the original, which inplace=True replaces: leave one of them out")
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
        on_progress=on_progress,
        distributed=distributed,
    )
    result = planned.apply(
        reconstruct=reconstruct,
        refit=refit,
        rectify=rectify,
        damping=damping,
        inplace=inplace,
        progress=progress,
        on_progress=on_progress,
    )
    return result.refine(progress=progress, on_progress=on_progress) if refine else result
