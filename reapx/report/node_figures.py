"""Figures of node sizes: over training, and as a histogram with the limit up to which a node counts as dead."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..errors import InputError
from . import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf")
INK, SOFT, GRID, ALIVE, DEAD = "#1c2127", "#5b6570", "#e6eaee", "#1f6fb2", "#d9662b"

DECADES = 16
"""Decades that the axis spans below the largest size; smaller sizes and zeros are drawn at its lower end."""

COLUMNS = 4
LINES = 400
"""Largest number of records that are drawn, evenly chosen; more would be finer than a pixel."""

VECTORS = 50_000
"""Number of points above which the lines are stored as pixels in .svg and .pdf as well."""

BINS = 48

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class NodeCurves:
    """Sizes of nodes over training.

    Attributes:
        steps: Step of each record.
        unit: Name of what the steps count.
        norms: Layer -> (records, nodes).
        alive: Layer -> (nodes,) bool, whether a node is alive at the last record.
        threshold: Share of the largest squared norm up to which a node counts as dead.
    """

    steps: Sequence[int]
    unit: str
    norms: Mapping[str, Tensor]
    alive: Mapping[str, Tensor]
    threshold: float


def write_curves(shown: NodeCurves, path: str | Path) -> Path:
    """Draw the sizes of all nodes over the steps, with a panel for each layer, and write the figure.

    Args:
        shown: Sizes to draw.
        path: File to write, ``.png``, ``.svg`` or ``.pdf``; its folder is created if it does not exist.

    Returns:
        The path.

    Raises:
        InputError: the path has another suffix.
        ReapxError: matplotlib is not installed.
    """
    target = checked_target(path)
    figure, panels = _grid(list(shown.norms))
    picked = np.unique(np.linspace(0, len(shown.steps) - 1, LINES).round().astype(int))
    curves = {layer: _values(norms)[picked] for layer, norms in shown.norms.items()}
    low, high = _range(list(curves.values()))
    pixels = sum(values.size for values in curves.values()) > VECTORS
    floored = any(bool((values < low).any()) for values in curves.values())
    for axes, (layer, values) in zip(panels, curves.items(), strict=True):
        alive = shown.alive[layer].numpy()
        _lines(axes, np.asarray(shown.steps)[picked], np.maximum(values, low), alive, pixels)
        _log_axis(axes, low, high, floored)
        _title(axes, layer, int(alive.sum()), alive.size)
    figure.supxlabel(shown.unit, fontsize=10, color=INK)
    figure.supylabel("squared norm of incoming weights", fontsize=10, color=INK)
    share = f"{shown.threshold:g}".replace("e-0", "e-")
    dead = f"dead: at most {share} of the largest" if shown.threshold else "dead: zero"
    return _save(figure, target, {"alive at the end": ALIVE, dead: DEAD})


def write_histogram(path: str | Path, values: Mapping[str, Tensor], limits: Mapping[str, float]) -> Path:
    """Draw a histogram of node sizes on a logarithmic axis, with a panel for each layer, and write the figure.

    A line marks the layer's limit. Nodes up to the limit are dead and have another colour. Zeros have a bar of their
    own at the left.

    Args:
        path: File to write, ``.png``, ``.svg`` or ``.pdf``; its folder is created if it does not exist.
        values: Layer -> (nodes,) finite sizes from 0.
        limits: Layer -> the largest size of a dead node; 0 where only zeros are dead.

    Returns:
        The path.

    Raises:
        InputError: the path has another suffix, or there are no layers.
        ReapxError: matplotlib is not installed.
    """
    target = checked_target(path)
    if not values:
        raise InputError("there are no layers to draw: give the sizes of at least one")
    figure, panels = _grid(list(values))
    for axes, (layer, sizes) in zip(panels, values.items(), strict=True):
        found, limit = _values(sizes), float(limits[layer])
        _bars(axes, found, limit)
        _title(axes, layer, int((found > limit).sum()), found.size)
    figure.supxlabel("size of a node, logarithmic", fontsize=10, color=INK)
    figure.supylabel("nodes, on an axis of square roots", fontsize=10, color=INK)
    return _save(figure, target, {"alive": ALIVE, "dead: up to the limit (dashed)": DEAD})


def checked_target(path: str | Path) -> Path:
    """The path, if figures can be written to it.

    Raises:
        InputError: the suffix is not one of ``ENDINGS``.
    """
    target = Path(path)
    if target.suffix.lower() not in ENDINGS:
        raise InputError(f"{target.name!r}: pictures are written as {', '.join(ENDINGS)}; give such a suffix")
    return target


def _values(tensor: Tensor) -> Values:
    found: Values = tensor.detach().cpu().double().numpy()
    return found


def _grid(layers: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A white figure with an empty panel for each layer; its size depends on their number."""
    plots.require()
    from matplotlib.figure import Figure

    columns = min(len(layers), 3 if len(layers) in (3, 5, 6, 9) else 2 if len(layers) in (2, 4) else COLUMNS)
    rows = -(-len(layers) // columns)
    width, height = (6.4, 3.8) if len(layers) == 1 else (4.6, 3.2) if columns < COLUMNS else (3.2, 2.2)
    figure = Figure(figsize=(columns * width + 0.4, rows * height + 0.7), layout="constrained", facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for empty in panels[len(layers) :]:
        empty.remove()
    for axes in panels[: len(layers)]:
        axes.spines[:].set_visible(False)
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, which="both", labelsize=8, labelcolor=SOFT)
    return figure, list(panels[: len(layers)])


def _title(axes: Axes, layer: str, alive: int, nodes: int) -> None:
    """Title of a panel: the layer's name (the end of a long one) and how many nodes are alive."""
    name = layer if len(layer) <= 30 else f"…{layer[-29:]}"
    own = f"{name}: " if name else ""
    axes.set_title(f"{own}{alive} of {nodes} left", fontsize=9.5, color=INK, loc="left", parse_math=False)


def _range(curves: Sequence[Values]) -> tuple[float, float]:
    """Ends of the axis, as powers of ten: above the largest size, and below the smallest within ``DECADES``."""
    positive = np.concatenate([values[np.isfinite(values) & (values > 0)] for values in curves])
    top = float(positive.max(initial=0.0)) or 1.0
    high = math.ceil(math.log10(top) + 0.05)
    least = float(positive.min(initial=top))
    low = max(math.floor(math.log10(least) - 0.05), high - DECADES)
    if low > high - DECADES and any(bool((values == 0).any()) for values in curves):
        low -= 1  # zeros are drawn below the smallest positive size
    return 10.0**low, 10.0**high


def _lines(
    axes: Axes, steps: npt.NDArray[np.int64], values: Values, alive: npt.NDArray[np.bool_], pixels: bool
) -> None:
    """A line for each node; dots where there is a single record."""
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import MaxNLocator

    dots = len(steps) == 1
    for chosen, colour in ((alive, ALIVE), (~alive, DEAD)):
        opacity = min(0.8, max(0.12, 18 / max(int(chosen.sum()), 1)))  # many lines overlap
        points = [np.column_stack([steps, column]) for column in values[:, chosen].T]
        axes.add_collection(LineCollection(points, colors=colour, linewidths=0.8, alpha=opacity, rasterized=pixels))
        if dots:
            at = np.full(int(chosen.sum()), steps[0])
            axes.scatter(at, values[0, chosen], s=14, color=colour, alpha=opacity, linewidths=0)
    start, end = int(steps[0]), int(steps[-1])
    axes.set_xlim((start - 1, end + 1) if start == end else (start, end))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _log_axis(axes: Axes, low: float, high: float, floored: bool) -> None:
    """Marks at powers of ten; the lowest is marked with ≤ where values lie at or below it."""
    bottom, top = round(math.log10(low)), round(math.log10(high))
    axes.set_yscale("log")
    axes.set_ylim(low * 10 ** (-0.03 * (top - bottom)), high)
    marks = list(range(bottom, top + 1, max(1, math.ceil((top - bottom) / 6))))
    labels = [f"$10^{{{mark}}}$" for mark in marks]
    if floored:
        labels[0] = f"$\\leq 10^{{{bottom}}}$"
    axes.set_yticks([10.0**mark for mark in marks], labels=labels)
    axes.minorticks_off()
    spec = axes.get_subplotspec()
    axes.tick_params(labelleft=spec is None or spec.is_first_col())  # panels share the axis


def _bars(axes: Axes, sizes: Values, limit: float) -> None:
    """Bars with an edge at the limit, so that each bar has one colour; a separate bar at the left counts zeros."""
    positive = np.log10(sizes[sizes > 0])
    line = math.log10(limit) if limit > 0 else None
    shown = [*positive, *([] if line is None else [line])] or [0.0]
    least, most = min(shown), max(shown)
    width = max((most - least) / BINS, 0.05)
    origin = least if line is None else line
    bins = np.ceil((positive - origin) / width).astype(int)
    alive = sizes[sizes > 0] > limit  # before rounding to logarithms and bins
    bins = np.where(alive, np.maximum(bins, 1), np.minimum(bins, 0)) if line is not None else bins
    zeros = int((sizes == 0).sum())
    zero_bar = least - 4 * width
    indices, counts = np.unique(bins, return_counts=True)
    for index, count in zip(indices, counts, strict=True):
        colour = DEAD if line is not None and index <= 0 else ALIVE
        axes.bar(origin + (index - 1) * width, count, width * 0.92, align="edge", color=colour, linewidth=0)
    if zeros:
        axes.bar(zero_bar, zeros, 2 * width, color=DEAD, linewidth=0)
    if line is not None:
        axes.axvline(line, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim((zero_bar if zeros else least) - 2 * width, most + 2 * width)
    _count_axis(axes, max(zeros, *counts.tolist(), 1))
    marks = dict(_round_sizes(least, most)) if indices.size or line is not None else {}
    if zeros:
        marks = {
            zero_bar: "0",
            **{mark: text for mark, text in marks.items() if mark - zero_bar > (most - zero_bar) / 12},
        }
    axes.set_xticks(list(marks), labels=list(marks.values()))


def _count_axis(axes: Axes, most: int) -> None:
    """A count axis from 0, scaled by square roots, so that one node is visible beside hundreds."""
    axes.grid(axis="x", visible=False)
    axes.set_yscale("function", functions=(lambda count: np.sqrt(np.maximum(count, 0)), np.square))
    axes.set_ylim(0, 1.1 * most)
    marks = [0]
    for mark in (digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5)):
        if mark <= most and math.sqrt(mark) - math.sqrt(marks[-1]) > 0.17 * math.sqrt(most):
            marks.append(mark)
    axes.set_yticks(marks)


def _round_sizes(least: float, most: float) -> Iterator[tuple[float, str]]:
    """Logarithms and labels of powers of ten in a range; of 1, 2 and 5 times them where it holds fewer than two."""
    low, high = math.floor(least), math.ceil(most)
    if math.floor(most) - math.ceil(least) >= 1:
        for power in range(low, high + 1, max(1, math.ceil((high - low) / 6))):
            if least <= power <= most:
                yield float(power), f"$10^{{{power}}}$"
        return
    for power in range(low, high + 1):
        for digit in (1, 2, 5):
            mark = power + math.log10(digit)
            if least - 0.1 <= mark <= most + 0.1:
                yield mark, f"{float(f'{digit}e{power}'):g}"


def _save(figure: Figure, target: Path, colours: Mapping[str, str]) -> Path:
    """Add the legend and write the file."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=3, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, labelcolor=INK, fontsize=9)
    return plots.save(figure, target, 150, "reapx")
