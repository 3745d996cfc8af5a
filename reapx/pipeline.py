"""The pipeline: capture, groups, allocate, measure, select; then ``Plan.apply``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import nn

from .allocation import uniform
from .budget import Budget
from .checks import check_arguments, check_refinements
from .inspection import MEMORY, inspect
from .plan import GroupPlan, Plan, Result, show_bars
from .selection import find_paths

DAMPING = 1e-2
"""Default pull towards the old weights, a fraction of the mean diagonal of each Gram matrix."""


def plan(
    model: nn.Module,
    images: object,
    *,
    budget: Budget,
    allocation: str = "uniform",
    selection: str = "reap",
    streams: bool = False,
    round_to: int = 1,
    exclude: Sequence[str] = (),
    damping: float = DAMPING,
    swaps: int = 0,
    positions: int | None = None,
    memory: int = MEMORY,
    progress: bool | None = None,
) -> Plan:
    """Find out which channels to remove; nothing is touched.

    Args:
        model: Module in eval mode.
        images: A tensor (images, ...) or an iterable of batches: tensors, tuples whose first item is the
            input, or dicts of keyword arguments. No labels.
        budget: ``MACs(0.5)``, ``Params(0.4)``; fractions of the original or absolute numbers.
        allocation: How many channels each group keeps: ``"uniform"``.
        selection: Which channels leave: ``"reap"`` (least reconstruction error) or ``"magnitude"`` (smallest weights).
        streams: Whether residual streams lose channels too.
        round_to: Kept widths are multiples of this.
        exclude: Layer names or patterns (``"layer3.*"``) whose output channels stay.
        damping: λ as a fraction of the mean diagonal of each Gram matrix.
        swaps: After selection, exchange up to this many removed channels of each group for kept ones, as long as the
            reconstruction error falls (``"reap"`` only).
        positions: Measure only this many random positions of each feature map for selection, the same on every run;
            all by default. Layers that read vectors or tokens measure all.
        memory: Bytes of memory for images, and for activations, before they go to disk.
        progress: Show progress bars; by default when the terminal is one.

    Returns:
        The plan; ``print`` it, then ``apply`` it.

    Raises:
        InputError: images or arguments cannot be used, or the model is in train mode.
        CaptureError: torch.export refuses the model.
        BudgetError: the budget cannot be reached; says the smallest that can.
        NumericalError: NaN or Inf in an activation, or a singular Gram matrix.
    """
    start = time.perf_counter()
    check_arguments(budget, allocation, selection, round_to, damping)
    check_refinements(selection, swaps, positions)
    found = inspect(model, images, exclude=exclude, memory=memory)
    groups, costs = found.groups, found.costs
    widths = uniform(groups, costs, budget, round_to, streams)
    paths = find_paths(
        found._graph,
        found._images,
        groups,
        widths,
        selection,
        damping=damping,
        swaps=swaps,
        positions=positions,
        progress=show_bars(progress),
    )
    entries = []
    for group, path in zip(groups, paths, strict=True):
        count = group.size - widths[group.name]
        entries.append(GroupPlan(group, group.size - count, path.final, path.removed(count)))
    return Plan(
        groups=entries,
        frozen=found.frozen,
        macs=(costs.macs(), costs.macs(widths)),
        params=(costs.params(), costs.params(widths)),
        selection=selection,
        swaps=swaps,
        positions=positions,
        allocation=allocation,
        budget=budget,
        streams=streams,
        damping=damping,
        seconds=time.perf_counter() - start,
        _model=model,
        _images=found._images,
        _graph=found._graph,
    )


def prune(
    model: nn.Module,
    images: object,
    *,
    budget: Budget,
    reconstruct: bool = True,
    refit: str = "all",
    damping: float = DAMPING,
    inplace: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> Result:
    """``reapx.plan`` and ``Plan.apply`` in one call.

    Args:
        reconstruct, refit, inplace: As for ``Plan.apply``.
        options: Further arguments of ``reapx.plan``.
    """
    planned = plan(model, images, budget=budget, damping=damping, progress=progress, **options)
    return planned.apply(reconstruct=reconstruct, refit=refit, damping=damping, inplace=inplace, progress=progress)
