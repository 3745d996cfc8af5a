"""Tables and short texts for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .costs.latency import Latency
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


def damping_text(damping: float) -> str:
    """A layer's damping in words; empty where it is not known."""
    if math.isnan(damping):
        return ""
    return "keeps its weights" if math.isinf(damping) else f"{damping:g}"


LARGE_CHANGE = 0.1
"""Outputs that differ by more of their variance are worth a word of advice."""


def predicted_advice(error: float) -> list[str]:
    """A line of advice where a plan's predicted error at the outputs is large: a share of their variance."""
    if not error > 2 * LARGE_CHANGE:
        return []
    return [
        f"The groups' errors at the outputs add up to {100 * error:.0f} % of the outputs' variance on held-out images, "
        "of which refitting repairs a part; more images or a larger budget would help."
    ]


def change_advice(change: float, images: int) -> list[str]:
    """A line of advice where a pruned network's outputs are far from the original's.

    Args:
        change: Squared difference over the variance of the original's outputs.
        images: Held-out images that it was measured on.
    """
    if not change > LARGE_CHANGE:
        return []
    return [
        f"The outputs differ by {100 * change:.0f} % of their variance on {images} images that no fit has seen; more "
        "images or a larger budget would help."
    ]


def latency_text(latency: Latency | None, milliseconds: tuple[float, ...] | None) -> list[str]:
    """A line on the milliseconds of a batch.

    Args:
        latency: The latency budget.
        milliseconds: (before, predicted) or (before, predicted, measured after); None for other budgets.

    Returns:
        A list with this line; empty where ``milliseconds`` is None.
    """
    if milliseconds is None or latency is None:
        return []
    before, predicted, *after = milliseconds
    how = "predicted" if latency.table is not None else "planned"
    times = [f"{before:.2f} ms before", f"{predicted:.2f} ms {how} (x{predicted / max(before, 1e-300):.3f})"]
    times += [f"{value:.2f} ms measured after (x{value / max(before, 1e-300):.3f})" for value in after]
    return [f"a batch of {latency.batch} {latency.where}: {', '.join(times)}"]


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
