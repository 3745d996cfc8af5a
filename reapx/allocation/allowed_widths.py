"""The widths that each group may have: multiples of a step, within bounds; 0 where a whole branch may leave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..costs.budget import Budget, Costs
from ..errors import InputError
from ..groups.channel_groups import Group

Widths = npt.NDArray[np.int64]
AllowedWidths = dict[str, Widths]
"""Group name -> its allowed widths in units, ascending."""


@dataclass(frozen=True)
class WidthRules:
    """The user's restrictions on widths.

    Attributes:
        round_to: Widths are multiples of this number of channels; the full width is allowed as well.
        streams: Whether residual streams may lose channels.
        bounds: Group name -> (fewest, most) units that it keeps; only groups with bounds.
        droppable: Names of groups that may leave as a whole.
    """

    round_to: int = 1
    streams: bool = True
    bounds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    droppable: frozenset[str] = frozenset()

    def allowed(self, groups: Sequence[Group]) -> AllowedWidths:
        """The allowed widths of each group.

        Raises:
            InputError: the bounds allow no width of a group, or bound a residual stream that must stay whole.
        """
        return {group.name: np.array(self._widths(group), dtype=np.int64) for group in groups}

    def _widths(self, group: Group) -> list[int]:
        fewest, most = self.bounds.get(group.name, (0, group.size))
        if group.residual_stream and not self.streams:
            if most < group.size:
                raise InputError(f"bounds of {group.name}, a residual stream: streams=False leaves it whole")
            return [group.size]
        step = self.round_to // math.gcd(self.round_to, group.per_unit)
        widths = {width for width in range(step, group.size + 1, step) if fewest <= width <= most}
        if fewest == 0 and group.name in self.droppable:
            widths.add(0)
        if most == group.size:
            widths.add(group.size)
        if not widths:
            fewest, most = fewest * group.per_unit, most * group.per_unit
            raise InputError(
                f"bounds of {group.name}: no multiple of round_to={self.round_to} lies within {fewest} to {most} "
                "channels: widen them, or lower round_to"
            )
        return sorted(widths)


def smallest(allowed: AllowedWidths) -> dict[str, int]:
    """Every group at its smallest allowed width."""
    return {name: int(widths[0]) for name, widths in allowed.items()}


def largest(allowed: AllowedWidths) -> dict[str, int]:
    """Every group at its largest allowed width."""
    return {name: int(widths[-1]) for name, widths in allowed.items()}


def refusal(budget: Budget, costs: Costs, groups: Sequence[Group], width_rules: WidthRules) -> str:
    """The error text for a budget that cannot be reached: the smallest cost, and which restrictions to loosen."""
    kind = type(budget)
    name, full = kind.__name__, costs.of(kind)
    limit, least = budget.limit(full), _least(kind, costs, groups, width_rules)
    unit = f" {budget.unit}" if budget.unit else ""
    cures = ["raise it"]
    if any(group.residual_stream for group in groups) and not width_rules.streams:
        then = _least(kind, costs, groups, replace(width_rules, streams=True))
        cures.append(f"let residual streams take part with streams=True (then down to {then:,})")
    if width_rules.round_to > 1:
        then = _least(kind, costs, groups, replace(width_rules, round_to=1))
        cures.append(f"lower round_to={width_rules.round_to} (1 allows {then:,})")
    if width_rules.bounds:
        then = _least(kind, costs, groups, replace(width_rules, bounds={}))
        cures.append(f"loosen bounds (none allow {then:,})")
    if budget.amount > 1 and limit < least / 10:
        cures.append("give a fraction such as 0.5 if that is what you meant: amounts above 1 are absolute")
    shares = costs.shares(kind, smallest(width_rules.allowed(groups)))
    holding = ", ".join(f"{layer} ({share:.0%})" for layer, share in shares[:3])
    return (
        f"{name}({budget.amount}) allows {round(limit, 3):,}{unit}, but the smallest that can be reached is "
        f"{least:,}{unit} ({name}({least / full:.4f})): {', or '.join(cures)}. Most of that is in {holding}; "
        "print(reapx.inspect(model, images)) says which channels stay, and why"
    )


def _least(kind: type[Budget], costs: Costs, groups: Sequence[Group], width_rules: WidthRules) -> float:
    least = costs.of(kind, smallest(width_rules.allowed(groups)))
    return least if isinstance(least, int) else round(float(least), 3)
