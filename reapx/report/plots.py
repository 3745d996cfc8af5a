"""Plots for the HTML pages: drawn by matplotlib without its global state, and written as inline SVG.

Colours are placeholders (``INK``, ``BEFORE``, ...) for colours of the page's style sheet, so that plots follow the page
into dark mode.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ReapxError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..planning.plan import Plan
    from ..reconstruction.layer_refit import LayerRefit

INK, LINE, BEFORE, AFTER, PAPER = "#010101", "#010102", "#010103", "#010104", "#010105"
DEPTHS = tuple(f"#01011{step}" for step in range(8))
"""Placeholders of the groups' colours, from the front of the network to its end."""

ROLES = {
    INK: "currentColor",
    LINE: "var(--line)",
    BEFORE: "var(--before)",
    AFTER: "var(--after)",
    PAPER: "var(--paper)",
    **{colour: f"var(--depth{step})" for step, colour in enumerate(DEPTHS)},
}
"""Placeholder colour that matplotlib writes -> the colour in the page."""

WIDTH = 7.4
"""Width of a plot in inches; the page shows an inch as 96 pixels."""

TIP = "tip:"

FLOOR = 1e-8
"""Smaller errors are drawn at this value, since the axis is logarithmic."""


def require() -> None:
    """Check that matplotlib is installed.

    Raises:
        ReapxError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ReapxError('reports need matplotlib, which is not installed: pip install "reapx[report]"') from error


def empty_figure(height: float) -> Figure:
    """A transparent figure of the page's width and ``height`` inches, made without pyplot."""
    require()
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained", facecolor="none")


def svg(figure: Figure, label: str) -> str:
    """The figure as an ``<svg>`` element for an HTML page.

    Text stays text in the page's font. The element has no metadata, no namespaces, and only those ids that the drawing
    itself refers to. An artist whose gid starts with ``TIP`` shows the rest of its gid as a tooltip.
    """
    import matplotlib

    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(rf'<g id="{TIP}([^"]*)">', r"<g><title>\1</title>", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("<metadata/>", "")
    for colour, role in ROLES.items():
        text = text.replace(colour, role)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def widths_figure(plan: Plan) -> Figure:
    """Channels of each group: the whole bar before pruning, the filled part after it."""
    figure = empty_figure(0.8 + 0.26 * len(plan.groups))
    axes = _rows(figure, [entry.group.name for entry in plan.groups])
    sizes = [entry.channels[0] for entry in plan.groups]
    rows = range(len(sizes))
    axes.barh(rows, sizes, height=0.68, color=BEFORE, label="removed")
    axes.barh(rows, [entry.channels[1] for entry in plan.groups], height=0.68, color=AFTER, label="kept")
    for row, entry in enumerate(plan.groups):
        before, after = entry.channels
        text = f"{before} → {after}" if after < before else str(before)
        axes.annotate(text, (before, row), (4, 0), textcoords="offset points",
                      va="center", color=INK, fontsize=8)  # fmt: skip
    axes.set_xlim(0, 1.15 * max(sizes, default=1))
    axes.set_xlabel("channels", color=INK)
    _legend(figure)
    return figure


def errors_figure(fits: Sequence[LayerRefit]) -> Figure:
    """Error of each refitted layer before and after its refit, on a logarithmic axis."""
    figure = empty_figure(0.8 + 0.26 * len(fits))
    axes = _rows(figure, [fit.layer for fit in fits])
    before = [_drawable(fit.before) for fit in fits]
    after = [_drawable(fit.error) for fit in fits]
    rows = range(len(fits))
    axes.hlines(rows, after, before, color=LINE, linewidth=2)
    axes.scatter(before, rows, s=36, color=BEFORE, label="before its refit", zorder=3)
    axes.scatter(after, rows, s=36, color=AFTER, label="after", zorder=3)
    shown = [value for value in (*before, *after) if math.isfinite(value)] or [1.0]
    low, high = math.floor(math.log10(min(shown))), math.ceil(math.log10(max(shown)))
    axes.set_xscale("log")
    axes.set_xlim(10.0**low / 1.3, 10.0 ** max(high, low + 1) * 1.3)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("squared error, share of what the layer should compute", color=INK)
    _legend(figure)
    return figure


def panels_figure(labels: Sequence[str], panels: Sequence[tuple[str, Sequence[float]]]) -> Figure:
    """Bars side by side: a panel for each quantity, and in it a bar for each label.

    Args:
        labels: Names of the bars; the first has the colour of ``BEFORE``.
        panels: (title, one value per label).
    """
    figure = empty_figure(0.9 + 0.3 * len(labels))
    colours = [BEFORE, *[AFTER] * (len(labels) - 1)]
    rows = range(len(labels))
    for axes, (title, values) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0],
                                     panels, strict=True):  # fmt: skip
        plain(axes)
        axes.barh(rows, values, height=0.68, color=colours)
        for row, value in enumerate(values):
            axes.annotate(f"{value:.1f}", (value, row), (4, 0), textcoords="offset points",
                          va="center", color=INK, fontsize=8)  # fmt: skip
        axes.set_title(title, color=INK, fontsize=9, parse_math=False)
        axes.set_xlim(0, 1.3 * max(*values, 1e-9))
        _label_rows(axes, labels)
    return figure


def lines_figure(
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]], across: str, up: str, *, level: tuple[str, float]
) -> Figure:
    """Lines through marked points, the last one in the colour of ``AFTER``, named in a legend below.

    Args:
        lines: (name, points (x, y)), from the least to the most.
        across, up: What the axes show.
        level: Name and y of a dashed line across the figure.
    """
    figure = empty_figure(3.6 + 0.2 * len(lines))
    axes = figure.subplots()
    plain(axes)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.axhline(level[1], color=INK, linewidth=1, linestyle="--", label=level[0])
    for place, ((name, points), marker) in enumerate(zip(lines, "osD^v*XP"[: len(lines)], strict=True), 1):
        colour = AFTER if place == len(lines) else DEPTHS[place * (len(DEPTHS) - 1) // len(lines)]
        axes.plot(*zip(*sorted(points), strict=True), color=colour, marker=marker, linewidth=1.6, label=name)
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(up, color=INK)
    figure.legend(loc="outside lower left", ncols=1, frameon=False, labelcolor=INK, fontsize=8)
    return figure


def _rows(figure: Figure, labels: Sequence[str]) -> Axes:
    axes = figure.subplots()
    plain(axes)
    _label_rows(axes, labels)
    return axes


def _label_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)))
    axes.set_yticklabels(labels, parse_math=False)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def save(figure: Figure, target: Path, dpi: int, salt: str) -> Path:
    """Write a figure to a file and return its path; the same call writes the same bytes.

    Args:
        figure: The figure.
        target: File to write; its folder is created if it does not exist.
        dpi: Dots per inch of pixels.
        salt: Seed of the ids inside an .svg.
    """
    import matplotlib

    target.parent.mkdir(parents=True, exist_ok=True)
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(target.suffix.lower())
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(target, dpi=dpi, metadata=metadata)
    return target


def plain(axes: Axes) -> None:
    """Give axes a thin vertical grid and no frame."""
    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, which="both", labelsize=8, labelcolor=INK)


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside upper right", ncols=2, frameon=False, labelcolor=INK, fontsize=8)


def _drawable(value: float) -> float:
    return value if math.isnan(value) else max(value, FLOOR)
