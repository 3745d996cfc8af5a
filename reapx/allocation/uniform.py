"""Uniform: every group keeps the same share of its channels."""

from __future__ import annotations

from collections.abc import Sequence

from ..costs.budget import Budget, Costs
from ..groups.channel_groups import Group
from .allowed_widths import AllowedWidths, WidthRules, largest


def uniform(groups: Sequence[Group], costs: Costs, budget: Budget, width_rules: WidthRules) -> dict[str, int]:
    """One ratio for all groups that take part.

    The largest common ratio that meets the budget is found by bisection; what rounding leaves over is
    then given back a step at a time, first to the groups that lost most by rounding.

    Args:
        groups: All groups that can be pruned.
        costs: Cost of the network as a function of widths.
        budget: Never exceeded; the smallest allowed widths meet it.
        width_rules: Widths that groups may have.

    Returns:
        Group name -> kept units.
    """
    kind = type(budget)
    limit = budget.limit(costs.of(kind))
    allowed = width_rules.allowed(groups)

    def widths_at(ratio: float) -> dict[str, int]:
        return {name: _at_most(allowed, name, ratio * costs.full[name]) for name in allowed}

    if costs.of(kind, largest(allowed)) <= limit:
        return largest(allowed)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if costs.of(kind, widths_at(middle)) <= limit:
            low = middle
        else:
            high = middle
    return _given_back(widths_at(low), allowed, low, costs, kind, limit)


def _at_most(allowed: AllowedWidths, name: str, width: float) -> int:
    """The largest allowed width that is not above ``width``, else the smallest."""
    widths = allowed[name]
    return int(widths[max(int((widths <= width).sum()) - 1, 0)])


def _given_back(
    widths: dict[str, int], allowed: AllowedWidths, ratio: float, costs: Costs, kind: type[Budget], limit: float
) -> dict[str, int]:
    """Widths grown a step at a time, the group that lost most by rounding first, until nothing more fits."""
    growing = list(allowed)
    while growing:
        growing.sort(key=lambda name: widths[name] / costs.full[name] - ratio)
        for name in growing:
            wider = allowed[name][allowed[name] > widths[name]][:1]
            if len(wider) and costs.of(kind, {**widths, name: int(wider[0])}) <= limit:
                widths = {**widths, name: int(wider[0])}
                break
            growing = [other for other in growing if other != name]
    return widths
