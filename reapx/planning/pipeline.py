"""The pipeline: capture, groups, allocate, measure, select; then ``Plan.apply``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path as FilePath
from typing import Any

from torch import nn

from ..allocation.allowed_widths import WidthRules, refusal, smallest
from ..allocation.output_errors import scored_outputs
from ..allocation.pro import POINTS, Measurement, measure_tradeoff
from ..allocation.uniform import uniform
from ..calibration.checkpoint import Checkpoint, fingerprint
from ..calibration.processes import processes_of
from ..costs.budget import Budget
from ..costs.latency import Latency, latency_terms
from ..errors import BudgetError
from ..inspection.inspection import Inspection, inspect
from ..inspection.validation import bounds_of, check_arguments, check_measuring, check_refinements, check_settings
from ..selection.find_paths import find_paths
from ..text import show_bars
from .group_plan import plan_groups
from .plan import RECTIFY, Plan, Result

DAMPING = 1e-2
"""Default pull towards the old weights, a fraction of the mean diagonal of each Gram matrix."""

MEASURED_IMAGES = 300
"""Errors at the outputs are means, which so many images, spread evenly over all, tell well enough."""


def plan(
    model: nn.Module,
    images: object,
    *,
    budget: Budget,
    allocation: str = "pro",
    selection: str = "reap",
    streams: bool | None = None,
    round_to: int = 1,
    exclude: Sequence[str] = (),
    bounds: Mapping[str, tuple[float, float]] | None = None,
    points: int = POINTS,
    rounds: int = 1,
    output_error: str = "squared",
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
        exclude: Layer names or patterns (``"layer3.*"``) whose output channels stay.
        bounds: Layer name or pattern -> (fewest, most) of its output channels that stay: shares such as
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
    start = time.perf_counter()
    processes = processes_of(distributed, model)
    with processes.together():
        check_arguments(budget, allocation, selection, round_to, damping)
        check_measuring(allocation, points, rounds, output_error)
        check_refinements(selection, allocation, swaps, positions)
    settings = (budget, allocation, selection, streams, round_to, exclude, bounds, points, rounds, output_error)
    check_settings(processes, *settings, damping, swaps, positions, resume is None, memory)
    found = inspect(model, images, exclude=exclude, memory=memory, distributed=distributed)
    graph, groups, costs = found._graph, found.groups, found.costs
    pro = allocation == "pro"
    if pro:
        scored_outputs(graph, output_error)  # refuses outputs that cannot be compared
    limits = bounds_of(found._channels, bounds or {})
    width_rules = WidthRules(
        round_to, pro if streams is None else streams, limits, found.droppable if pro else frozenset()
    )
    if isinstance(budget, Latency):
        layers, calibration, batch = found._channels.layers, found._images, budget.batch
        costs.use(budget, processes.first(lambda: latency_terms(model, graph, layers, calibration, batch)))
    allowed = width_rules.allowed(groups)
    if costs.of(type(budget), smallest(allowed)) > budget.limit(costs.of(type(budget))):
        raise BudgetError(refusal(budget, costs, groups, width_rules))
    checkpoint = None if resume is None else _checkpoint(resume, found, positions)
    bars = show_bars(progress) and processes.rank == 0
    choose = partial(
        find_paths,
        graph,
        found._images,
        groups,
        selection=selection,
        damping=damping,
        positions=positions,
        progress=bars,
        checkpoint=checkpoint,
    )
    tradeoff = point = None
    if pro:
        paths = choose(smallest(allowed), refits=True)
        measure = Measurement(points, rounds, output_error, MEASURED_IMAGES)
        tradeoff = measure_tradeoff(
            graph,
            found._images,
            groups,
            paths,
            costs,
            budget,
            width_rules,
            measure,
            progress=bars,
            checkpoint=checkpoint,
        )
        point = tradeoff.at(budget)
        widths = point.widths
    else:
        widths = uniform(groups, costs, budget, width_rules)
    processes.check_rounding("widths", widths)
    if not pro or swaps:
        paths = choose(widths, swaps=swaps)
    return Plan(
        groups=plan_groups(groups, paths, widths, tradeoff),
        frozen=found.frozen,
        macs=(costs.macs(), costs.macs(widths)),
        params=(costs.params(), costs.params(widths)),
        selection=selection,
        swaps=swaps,
        positions=positions,
        allocation=allocation,
        budget=budget,
        streams=width_rules.streams,
        damping=damping,
        seconds=time.perf_counter() - start,
        _model=model,
        _found=found,
        _paths=paths,
        _tradeoff=tradeoff,
        _point=point,
    )


def _checkpoint(folder: str | FilePath, found: Inspection, positions: int | None) -> Checkpoint:
    """The folder's results, if they are of the same network, images, positions and number of processes.

    Of several processes, each has a folder in it.
    """
    processes = found._images.processes
    key = {
        **fingerprint(found._graph.tensors, found._images),
        "operators": found._graph.digest(),
        "positions": positions,
        "processes": processes.size,
    }
    if processes.size == 1:
        return Checkpoint(folder, key)
    with processes.together():
        if processes.rank == 0:
            Checkpoint(folder, key)  # refuses another number of processes, before any makes a folder of its own
    with processes.together():
        return Checkpoint(FilePath(folder) / f"rank-{processes.rank}", key)


def prune(
    model: nn.Module,
    images: object,
    *,
    budget: Budget,
    reconstruct: bool = True,
    refit: str = "all",
    rectify: int = RECTIFY,
    damping: float = DAMPING,
    inplace: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> Result:
    """``reapx.plan`` and ``Plan.apply`` in one call.

    Args:
        reconstruct, refit, rectify, inplace: As for ``Plan.apply``.
        options: Further arguments of ``reapx.plan``.
    """
    planned = plan(model, images, budget=budget, damping=damping, progress=progress, **options)
    return planned.apply(
        reconstruct=reconstruct, refit=refit, rectify=rectify, damping=damping, inplace=inplace, progress=progress
    )
