"""Uniform: every group keeps the same share of its channels."""

from __future__ import annotations

from collections.abc import Sequence

from ..budget import Budget, Costs
from ..errors import BudgetError
from ..groups import Group


def uniform(groups: Sequence[Group], costs: Costs, budget: Budget, round_to: int, streams: bool) -> dict[str, int]:
    """One ratio for all groups inside blocks; residual streams stay whole unless asked for.

    The largest common ratio that meets the budget is found by bisection; what rounding leaves over is
    then given back, one step a group, to the groups that lost most by rounding.

    Args:
        groups: All groups that can be pruned.
        costs: Cost of the network as a function of widths.
        budget: Never exceeded.
        round_to: Widths are multiples of it where the group is larger than it.
        streams: Whether residual streams take part.

    Returns:
        Group name -> kept units, at least 1.

    Raises:
        BudgetError: even the smallest widths cost more; says how much.
    """
    taking = [group for group in groups if streams or not group.stream]
    full = {group.name: group.size for group in groups}
    limit = budget.limit(costs.of(budget))

    def widths_at(ratio: float) -> dict[str, int]:
        kept = {g.name: _rounded(ratio * g.size, g.size, round_to) for g in taking}
        return {**full, **kept}

    if costs.of(budget) <= limit:
        return full
    smallest = costs.of(budget, widths_at(0.0))
    if smallest > limit:
        _refuse(budget, costs, smallest, limit, taking, groups)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if costs.of(budget, widths_at(middle)) <= limit:
            low = middle
        else:
            high = middle
    widths = widths_at(low)
    for group in sorted(taking, key=lambda g: widths[g.name] - low * g.size):
        wider = {**widths, group.name: min(widths[group.name] + round_to, group.size)}
        if costs.of(budget, wider) <= limit:
            widths = wider
    return widths


def _rounded(width: float, size: int, multiple: int) -> int:
    if size <= multiple:
        return size if multiple > 1 else max(int(width), 1)
    return min(max(int(width / multiple) * multiple, multiple), size)


def _refuse(
    budget: Budget,
    costs: Costs,
    smallest: int,
    limit: int,
    taking: Sequence[Group],
    groups: Sequence[Group],
) -> None:
    kind = type(budget).__name__
    share = smallest / costs.of(budget)
    cure = "raise it"
    if len(taking) < len(groups):
        everything = {group.name: 1 for group in groups}
        least = costs.of(budget, everything)
        cure += f" or let residual streams take part with streams=True (then down to {least:,})"
    raise BudgetError(
        f"{kind}({budget.amount}) allows {limit:,}, but the smallest that can be reached is {smallest:,} "
        f"({kind}({share:.4f})): {cure}"
    )
