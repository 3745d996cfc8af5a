"""Uniform: every group keeps the same share of its channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..budget import Budget, Costs
from ..errors import BudgetError
from ..groups import Group


def uniform(groups: Sequence[Group], costs: Costs, budget: Budget, round_to: int, streams: bool) -> dict[str, int]:
    """One ratio for all groups inside blocks; residual streams stay whole unless asked for.

    The largest common ratio that meets the budget is found by bisection; what rounding leaves over is
    then given back a step at a time, first to the groups that lost most by rounding.

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
    limit = budget.limit(costs.of(type(budget)))

    def widths_at(ratio: float) -> dict[str, int]:
        return {**full, **_widths(taking, ratio, round_to)}

    if costs.of(type(budget)) <= limit:
        return full
    smallest = costs.of(type(budget), widths_at(0.0))
    if smallest > limit:
        _refuse(budget, costs, smallest, limit, taking, groups, round_to)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if costs.of(type(budget), widths_at(middle)) <= limit:
            low = middle
        else:
            high = middle
    widths = widths_at(low)
    return _given_back(widths, taking, low, costs, budget, limit, round_to)


def _widths(groups: Sequence[Group], ratio: float, round_to: int) -> dict[str, int]:
    return {g.name: _rounded(ratio * g.size, g.size, _step(g, round_to)) for g in groups}


def _step(group: Group, round_to: int) -> int:
    """``round_to`` channels in units of the group."""
    return round_to // math.gcd(round_to, group.per_unit)


def _given_back(
    widths: dict[str, int],
    groups: Sequence[Group],
    ratio: float,
    costs: Costs,
    budget: Budget,
    limit: int,
    round_to: int,
) -> dict[str, int]:
    """Widths grown a step at a time, the group that lost most by rounding first, until nothing more fits."""
    growing = list(groups)
    while growing:
        growing.sort(key=lambda g: widths[g.name] / g.size - ratio)
        for group in growing:
            width = min(widths[group.name] + _step(group, round_to), group.size)
            wider = {**widths, group.name: width}
            if width > widths[group.name] and costs.of(type(budget), wider) <= limit:
                widths = wider
                break
            growing = [other for other in growing if other is not group]
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
    round_to: int,
) -> None:
    kind, full = type(budget).__name__, costs.of(type(budget))
    cures = ["raise it"]
    if len(taking) < len(groups):
        least = costs.of(type(budget), _widths(groups, 0.0, round_to))
        cures.append(f"let residual streams take part with streams=True (then down to {least:,})")
    if round_to > 1:
        least = costs.of(type(budget), {**costs.full, **_widths(taking, 0.0, 1)})
        cures.append(f"lower round_to={round_to} (1 allows {least:,})")
    if budget.amount > 1 and limit < smallest / 10:
        cures.append("give a fraction such as 0.5 if that is what you meant: amounts above 1 are absolute")
    raise BudgetError(
        f"{kind}({budget.amount}) allows {limit:,}, but the smallest that can be reached is {smallest:,} "
        f"({kind}({smallest / full:.4f})): {', or '.join(cures)}"
    )
