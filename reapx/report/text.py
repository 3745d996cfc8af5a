"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..groups import Frozen
    from ..inspection import Inspection
    from ..plan import Plan, Result


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]

    def show(line: Sequence[str]) -> str:
        cells = [
            line[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([show(lines[0]), "  ".join("-" * w for w in widths), *map(show, lines[1:])])


def short(number: float) -> str:
    """1234567 as ``1.23 M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f}"


def share(value: float) -> str:
    """An error as a percentage; empty where it is not known."""
    return "" if math.isnan(value) else f"{100 * value:.2f} %"


def costs_text(plan: Plan) -> str:
    """MACs and parameters before and after, in one line."""
    parts = []
    for name, (before, after) in (("MACs", plan.macs), ("parameters", plan.params)):
        parts.append(f"{name} {short(before)} -> {short(after)} (x{after / max(before, 1):.3f})")
    return ", ".join(parts)


def inspection_text(found: Inspection) -> str:
    """A model's channel groups, with what is frozen and why."""
    rows = []
    for group in found.groups:
        readers = len({consumer.layer.name for consumer in group.consumers})
        rows.append([group.name, "stream" if group.stream else "", str(group.size), str(readers)])
    lines = [
        f"{len(found.groups)} channel groups, {short(found.costs.macs())} MACs, "
        f"{short(found.costs.params())} parameters",
        "",
        table(rows, ["group", "", "channels", "read by"]),
    ]
    return "\n".join([*lines, *frozen_text(found.frozen)])


def plan_text(plan: Plan) -> str:
    """The plan as a table of groups, with what is frozen and why."""
    rows = []
    for entry in plan.groups:
        consumers = len({consumer.layer.name for consumer in entry.group.consumers})
        kind = "stream" if entry.group.stream else ""
        width = f"{entry.group.size} -> {entry.kept}"
        rows.append([entry.group.name, kind, width, str(consumers), share(entry.error)])
    lines = [
        f"Plan: {costs_text(plan)}",
        f"{plan.selection} selection, {plan.allocation} allocation, budget "
        f"{type(plan.budget).__name__}({plan.budget.amount}), {plan.seconds:.1f} s",
        "",
        table(rows, ["group", "", "channels", "read by", "predicted error"]),
    ]
    return "\n".join([*lines, *frozen_text(plan.frozen)])


def frozen_text(frozen: Sequence[Frozen]) -> list[str]:
    """Frozen channels by reason."""
    if not frozen:
        return []
    reasons: dict[str, list[str]] = {}
    for entry in frozen:
        reasons.setdefault(entry.reason, []).append(f"{entry.layer} ({entry.channels})")
    lines = ["", "Frozen (layer and number of its channels):"]
    for reason, layers in reasons.items():
        shown = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
        lines.append(f"  {reason}: {shown}")
    return lines


def result_text(result: Result) -> str:
    """What was done, and each refitted layer's error."""
    lines = [
        f"Pruned: {costs_text(result.plan)}",
        f"pruned equals masked to {result.gap:.0e} of the largest output; {result.seconds:.1f} s",
    ]
    if result.fits:
        rows = [[fit.layer, share(fit.before), share(fit.error)] for fit in result.fits]
        header = ["refitted layer", "error before", "after"]
        lines += ["", table(rows, header)]
    return "\n".join(lines)
