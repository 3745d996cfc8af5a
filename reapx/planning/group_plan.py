"""What a plan means for one group: how many of its units stay, which leave, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..allocation.pro import Tradeoff
from ..groups.channel_groups import Group
from ..selection.paths.path import Path
from ..text import output_text, share, table


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


def table_of(groups: Sequence[GroupPlan], measure: str | None) -> str:
    """What becomes of each group. ``measure`` says what errors at the outputs are; None where none were measured."""
    rows = []
    for entry in groups:
        group = entry.group
        before, after = entry.channels
        errors = ["stays whole", ""]
        if after != before:
            errors = [share(entry.error), "" if measure is None else output_text(entry.output_error, measure)]
        row = [group.name, group.kind, f"{before} -> {after}", str(len(group.consumer_names)), *errors]
        rows.append(row if measure is not None else row[:-1])
    header = ["group", "kind", "channels", "read by", "predicted error", "at the outputs"]
    return table(rows, header if measure is not None else header[:-1])
