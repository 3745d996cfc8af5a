"""What a plan means for one group: how many of its units stay, which leave, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .allocation import Tradeoff
from .groups import Group
from .selection import Path


@dataclass(frozen=True)
class GroupPlan:
    """What happens to one group.

    Attributes:
        group: The coupled channels.
        kept: Units that stay.
        error: Predicted reconstruction error at the consumers, a share of their outputs'
            variance; NaN for methods that do not know it.
        removed: (size - kept,) int64 units that leave.
        output_error: Predicted error at the network's outputs; NaN for allocations that do not measure it.
    """

    group: Group
    kept: int
    error: float
    removed: Tensor
    output_error: float = float("nan")

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of the first producer, before and after; a unit may own several."""
        return self.group.size * self.group.per_unit, self.kept * self.group.per_unit


def plan_groups(
    groups: Sequence[Group], paths: Sequence[Path], widths: Mapping[str, int], tradeoff: Tradeoff | None
) -> list[GroupPlan]:
    """What happens to each group at given widths, by its path."""
    entries = []
    for group, path in zip(groups, paths, strict=True):
        width = widths[group.name]
        count = group.size - width
        curve = None if tradeoff is None else tradeoff.curves[group.name]
        output_error = float("nan") if curve is None else float(curve.errors[count])
        entries.append(GroupPlan(group, width, path.error(count), path.removed(count), output_error))
    return entries
