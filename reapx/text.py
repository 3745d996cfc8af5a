"""Tables and short texts for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .costs.budget import Budget
from .groups.channel_groups import Frozen


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """A table with aligned columns; the first is left-aligned, the others right-aligned."""
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
    """A number with a unit prefix, such as ``1.23 M`` for 1234567."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f}"


def share(value: float) -> str:
    """An error as a percentage; empty where it is not known."""
    return "" if math.isnan(value) else f"{100 * value:.2f} %"


def output_text(value: float, measure: str) -> str:
    """An error at the network's outputs: a percentage, or nats if ``measure`` is ``"kl"``; empty where not known."""
    if measure != "kl":
        return share(value)
    return "" if math.isnan(value) else f"{value:.4f} nats"


def latency_text(budget: Budget, milliseconds: tuple[float, ...] | None) -> list[str]:
    """A line on the milliseconds of a batch.

    Args:
        budget: The latency budget.
        milliseconds: (before, predicted) or (before, predicted, measured after); None for other budgets.

    Returns:
        A list with this line; empty where ``milliseconds`` is None.
    """
    if milliseconds is None:
        return []
    before, predicted, *after = milliseconds
    times = [f"{before:.2f} ms before", f"{predicted:.2f} ms predicted (x{predicted / max(before, 1e-300):.3f})"]
    times += [f"{value:.2f} ms measured after (x{value / max(before, 1e-300):.3f})" for value in after]
    return [f"a batch of {getattr(budget, 'batch', 1)} on this machine: {', '.join(times)}"]


def saving(name: str, costs: tuple[int, int]) -> str:
    """A cost before and after pruning, as text."""
    before, after = costs
    return f"{name} {short(before)} -> {short(after)} (x{after / max(before, 1):.3f})"


def frozen_text(frozen: Sequence[Frozen]) -> list[str]:
    """Lines on frozen channels, grouped by reason."""
    if not frozen:
        return []
    reasons: dict[str, list[str]] = {}
    for entry in frozen:
        reasons.setdefault(entry.reason, []).append(f"{entry.layer} ({entry.channels})")
    lines = ["", "Frozen (layer and number of its channels):"]
    for reason, layers in reasons.items():
        lines.append(f"  {reason}: {listed(layers, 3)}")
    return lines


def listed(names: Sequence[str], shown: int = 8) -> str:
    """The first ``shown`` names, and the number of further ones."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
