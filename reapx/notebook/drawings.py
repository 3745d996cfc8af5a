"""Two small plots for notebooks; the plots of the HTML report are in reapx/report/."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ReapxError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEFORE, AFTER = "#b9c4d0", "#1f6fb2"


def widths_drawing(widths: Sequence[tuple[str, int, int]]) -> Figure:
    """Bars of channels before and after pruning, from (name, before, after) of each group."""
    figure, axes = _empty(0.9 + 0.25 * len(widths))
    rows = range(len(widths))
    axes.barh(rows, [before for _, before, _ in widths], color=BEFORE, label="removed")
    axes.barh(rows, [after for _, _, after in widths], color=AFTER, label="kept")
    axes.set_yticks(rows, [name for name, _, _ in widths], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("channels")
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return figure


def tradeoff_drawing(points: Sequence[tuple[float, float]]) -> Figure:
    """A line of predicted error over cost, from (share of the cost, error)."""
    figure, axes = _empty(3.4)
    axes.plot(*zip(*points, strict=True), color=AFTER)
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_xlabel("share of the original's cost")
    axes.set_ylabel("predicted error")
    return figure


def _empty(height: float) -> tuple[Figure, Axes]:
    """A figure that no global state of pyplot keeps, and its axes."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ReapxError('plot needs matplotlib, which is not installed: pip install "reapx[report]"') from error
    figure = Figure(figsize=(7.4, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
