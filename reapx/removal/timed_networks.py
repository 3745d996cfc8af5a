"""Networks of given widths, timed in turn with the original, to meet a latency budget by measurement."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..allocation.allowed_widths import AllowedWidths, largest, smallest
from ..allocation.timed_widths import timed_limit
from ..costs.budget import Budget
from ..costs.latency import Latency, measure_milliseconds
from ..inspection.inspection import Inspection
from ..surgery.cut import kept_positions
from ..surgery.emptied_layers import find_endings, shrink
from ..surgery.module_numbers import input_widths, numbers_after, set_widths

Limits = dict[type[Budget], float]
"""Kind of budget -> largest cost."""


@dataclass(frozen=True)
class MetLimits:
    """Limits that lead to widths which meet all budgets.

    Attributes:
        limits: Kind of budget -> largest cost; of a latency, the predicted one.
        latency: Milliseconds (of the original, measured at these widths); None where nothing was timed.
    """

    limits: Limits
    latency: tuple[float, float] | None


def network_of(model: nn.Module, found: Inspection, widths: Mapping[str, int]) -> nn.Module:
    """A copy of a network with these widths. Which channels it keeps does not matter for its time: the last ones."""
    removed = {group.name: torch.arange(group.size - widths[group.name]) for group in found.groups}
    kept = kept_positions(found.groups, removed, found._graph.tensors)
    smaller = copy.deepcopy(model)
    numbers = numbers_after(model, found.groups, removed)
    shrink(smaller, kept, {}, find_endings(found._graph, found.groups, kept), numbers)
    set_widths(smaller, input_widths(smaller, found._images))
    return smaller


def timed_at(model: nn.Module, found: Inspection, latency: Latency, widths: Mapping[str, int]) -> float:
    """Measured milliseconds at these widths, at the speed at which the original was measured first.

    All processes get the milliseconds of the first.
    """
    full = float(found.costs.of(type(latency)))
    if dict(widths) == found.costs.full:
        return full
    smaller = network_of(model, found, widths)
    images = found._images
    before, after = images.processes.first(lambda: measure_milliseconds([model, smaller], images, latency))
    return full * after / before


def meet(
    model: nn.Module,
    found: Inspection,
    budgets: Sequence[Budget],
    allowed: AllowedWidths,
    propose: Callable[[Limits], Mapping[str, int]],
) -> MetLimits:
    """The limits at which widths meet all budgets; those of a latency follow from timing proposed networks.

    Args:
        model: The network; it is not changed.
        found: Its groups, costs and images.
        budgets: One of each kind.
        allowed: Allowed widths of each group.
        propose: Limits -> widths within them.

    Raises:
        BudgetError: the network of the smallest allowed widths takes longer than the latency allows.
    """
    costs = found.costs
    limits: Limits = {type(budget): budget.limit(costs.of(type(budget))) for budget in budgets}
    latency = next((own for own in budgets if isinstance(own, Latency) and own.table is None), None)
    if latency is None:
        return MetLimits(limits, None)
    kind = type(latency)
    ends = tuple(float(costs.of(kind, widths)) * (1 + 1e-9) for widths in (smallest(allowed), largest(allowed)))
    timed = timed_limit(
        latency,
        limits[kind],
        (ends[0], ends[1]),
        lambda limit: propose({**limits, kind: limit}),
        lambda widths: timed_at(model, found, latency, widths),
    )
    return MetLimits({**limits, kind: timed.limit}, (float(costs.of(kind)), timed.milliseconds))
