"""Uniform: every group keeps the same share of its channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..costs.budget import Budget, Costs
from ..groups.channel_groups import Group
from .allowed_widths import AllowedWidths, WidthRules, largest
from .descent import within


def uniform(
    groups: Sequence[Group], costs: Costs, limits: Mapping[type[Budget], float], width_rules: WidthRules
) -> dict[str, int]:
    """One ratio of kept units for all groups that may lose channels.

    Bisection finds the largest common ratio that meets the budgets. Rounding to allowed widths leaves some of them
    unused. Groups then grow by single steps until it is used up, those that lost most by rounding first.

    Args:
        groups: All groups that can be pruned.
        costs: Cost of the network as a function of widths.
        limits: Kind of budget -> largest cost; the caller has checked that the smallest allowed widths meet them all.
        width_rules: The user's restrictions on widths.

    Returns:
        Group name -> kept units.
    """
    allowed = width_rules.allowed(groups)

    def widths_at(ratio: float) -> dict[str, int]:
        return {name: _at_most(allowed, name, ratio * costs.full[name]) for name in allowed}

    if within(costs, largest(allowed), limits):
        return largest(allowed)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if within(costs, widths_at(middle), limits):
            low = middle
        else:
            high = middle
    return _given_back(widths_at(low), allowed, low, costs, limits)


def _at_most(allowed: AllowedWidths, name: str, width: float) -> int:
    """The largest allowed width that is at most ``width``; the smallest allowed width where there is none."""
    widths = allowed[name]
    return int(widths[max(int((widths <= width).sum()) - 1, 0)])


def _given_back(
    widths: dict[str, int], allowed: AllowedWidths, ratio: float, costs: Costs, limits: Mapping[type[Budget], float]
) -> dict[str, int]:
    """Widths grown by single steps, the group that lost most by rounding first, until no further step fits."""
    growing = list(allowed)
    while growing:
        growing.sort(key=lambda name: widths[name] / costs.full[name] - ratio)
        for name in growing:
            wider = allowed[name][allowed[name] > widths[name]][:1]
            if len(wider) and within(costs, {**widths, name: int(wider[0])}, limits):
                widths = {**widths, name: int(wider[0])}
                break
            growing = [other for other in growing if other != name]
    return widths
