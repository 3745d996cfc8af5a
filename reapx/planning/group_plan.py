"""The plan of one group: how many of its units stay, which leave, and the predicted errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..allocation.pro import Tradeoff
from ..errors import InputError
from ..groups.channel_groups import Group
from ..selection.paths.path import Path
from ..text import listed, output_text, share, table

Units = Sequence[int] | Tensor
"""Numbers of a group's units, from 0 to its size - 1."""


@dataclass(frozen=True, eq=False, repr=False)
class GroupPlan:
    """The plan of one group.

    Attributes:
        group: The channel group.
        kept: Number of units that stay.
        error: Predicted reconstruction error at the consumers, as a share of their outputs' variance; NaN where it was
            not measured.
        removed: (size - kept,) int64 units that leave.
        output_error: Predicted error at the network's outputs; NaN where it was not measured.
    """

    group: Group
    kept: int
    error: float
    removed: Tensor
    output_error: float = float("nan")

    def __repr__(self) -> str:
        before, after = self.channels
        return f"GroupPlan({self.group.name}: {before} -> {after} channels, predicted error {share(self.error) or '?'})"

    @property
    def channels(self) -> tuple[int, int]:
        """Number of the first producer's output channels, before and after; a unit may have several channels."""
        return self.group.size * self.group.per_unit, self.kept * self.group.per_unit


def plan_groups(
    groups: Sequence[Group], paths: Sequence[Path], widths: Mapping[str, int], tradeoff: Tradeoff | None
) -> tuple[GroupPlan, ...]:
    """The plan of each group at given widths, from its path."""
    entries = []
    for group, path in zip(groups, paths, strict=True):
        width = widths[group.name]
        count = group.size - width
        curve = None if tradeoff is None else tradeoff.curves[group.name]
        output_error = float("nan") if curve is None else float(curve.errors[count])
        entries.append(GroupPlan(group, width, path.error(count), path.removed(count), output_error))
    return tuple(entries)


def chosen_units(argument: str, group: Group, units: Units) -> Tensor:
    """(count,) int64 units of a group that the caller named, sorted.

    Args:
        argument: Name of the argument, for the error message.
        group: The group.
        units: Their numbers, from 0 to the size of the group - 1.

    Raises:
        InputError: units are not whole numbers, occur twice, or do not exist.
    """
    where, last = f"{argument} of {group.name}", group.size - 1
    try:
        given = torch.as_tensor(units).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where} is a {type(units).__name__}: give numbers of units from 0 to {last}") from error
    if given.dim() != 1 or (len(given) and (given.is_floating_point() or given.dtype == torch.bool)):
        raise InputError(
            f"{where} has shape {tuple(given.shape)} and dtype {given.dtype}: give numbers of units, such as "
            f"[0, 3], from 0 to {last}; mask.nonzero().flatten() has those of a mask"
        )
    found = given.to(torch.int64).sort().values
    wrong = found[(found < 0) | (found > last)]
    twice = found[1:][found[1:] == found[:-1]]
    if len(wrong) or len(twice):
        what = f"{int(wrong[0])} is none of its units" if len(wrong) else f"unit {int(twice[0])} occurs twice"
        raise InputError(f"{where}: {what}: give each number from 0 to {last} once at most")
    return found


def replaced(
    entries: Sequence[GroupPlan], removed: Mapping[str, Units], droppable: frozenset[str]
) -> tuple[GroupPlan, ...]:
    """The plans of all groups, with the caller's units in some of them; their errors are unknown (NaN).

    Raises:
        InputError: no group has such a name, units are not valid, or all units leave a group that cannot leave as a
            whole.
    """
    known = {entry.group.name: entry.group for entry in entries}
    if not isinstance(removed, Mapping):
        raise InputError(f"removed={removed!r}: give a dict from group names to units, such as {{'layer1.0': [0, 3]}}")
    for name in removed:
        if name not in known:
            raise InputError(f"removed={{{name!r}: ...}}: no group has this name; there are {listed(list(known))}")
    found = {name: chosen_units("removed", known[name], units) for name, units in removed.items()}
    for name, units in found.items():
        if len(units) == known[name].size and name not in droppable:
            raise InputError(
                f"removed of {name}: all {len(units)} units would leave, but this group cannot go as a whole: keep one"
            )
    return tuple(
        GroupPlan(entry.group, entry.group.size - len(found[name]), math.nan, found[name]) if name in found else entry
        for entry in entries
        for name in [entry.group.name]
    )


def table_of(groups: Sequence[GroupPlan], measure: str | None) -> str:
    """A table of the groups' plans, as text; its arguments are those of ``columns_of``."""
    header, rows = columns_of(groups, measure)
    return table(rows, header)


def columns_of(groups: Sequence[GroupPlan], measure: str | None) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of the groups' plans.

    Args:
        groups: The plans.
        measure: Measure of the errors at the outputs, ``"squared"`` or ``"kl"``; None where they were not measured.
    """
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
    return (header if measure is not None else header[:-1]), rows
