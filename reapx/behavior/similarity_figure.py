"""The figure of a layer's behaviours: correlations, and errors where one unit emulates another."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..report import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

LABELLED = 40
"""Largest number of units that are labelled along the axes."""

DECADES = 5
"""Largest number of decades that the colours of errors span; smaller errors take the colour of the lowest."""

INK, FRAME, EMPTY = "#1c2127", "#b9c4d0", "#dde2e7"

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Similarity:
    """Contents of the figure.

    Attributes:
        title: Title above both panels.
        labels: Labels of the units, in the order in which they are drawn.
        correlation: (units, units), in that order.
        errors: (units, units), in that order, errors where the column's unit emulates the row's; inf where unknown.
    """

    title: str
    labels: list[str]
    correlation: Values
    errors: Values


def write_similarity(shown: Similarity, path: str | Path) -> Path:
    """Write the figure to a ``.png`` or ``.svg`` file, and return the path; its folder is created if needed.

    Raises:
        InputError: the path has another suffix.
        ReapxError: matplotlib is not installed.
    """
    target = Path(path)
    if target.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"{target.name!r}: pictures are written as .png or .svg; give a path that ends in one of them")
    return plots.save(similarity_figure(shown), target, 200, shown.title)


def similarity_figure(shown: Similarity) -> Figure:
    """Two panels, 12 inches wide: the correlation matrix and the errors of all pairs, in the same order."""
    plots.require()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.8), layout="constrained", facecolor="white")
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(w_pad=0.12, h_pad=0.08)  # type: ignore[call-arg]
    left, right = figure.subplots(1, 2)
    drawn = left.imshow(shown.correlation, cmap="RdBu_r", vmin=-1, vmax=1)
    _panel(left, shown.labels, "correlation of behaviours", "channel", "channel")
    _bar(figure, left, drawn, {value: f"{value:+.1f}" for value in (-1, -0.5, 0, 0.5, 1)})
    _errors(figure, right, shown.errors)
    _panel(
        right, shown.labels, "cost of letting one channel emulate another", "channel that stays", "channel that leaves"
    )
    title = figure.suptitle(textwrap.fill(shown.title, 100), fontsize=13, color=INK)
    title.set_parse_math(False)
    return figure


def _errors(figure: Figure, axes: Axes, errors: Values) -> None:
    """Errors of all pairs as colours on a logarithmic scale; grey where the error is unknown."""
    import matplotlib
    from matplotlib.colors import LogNorm

    known = errors[np.isfinite(errors)]
    top = max(float(known.max(initial=0.0)), 1e-12)
    positive = known[known > top * 10.0**-DECADES]
    low = min(float(positive.min(initial=top)), top / 2)
    colours = matplotlib.colormaps["viridis_r"].with_extremes(bad=EMPTY)
    drawn = np.ma.masked_invalid(np.where(np.isfinite(errors), np.maximum(errors, low), np.nan))
    # Interpolated colours would mix with the grey of the diagonal.
    shown = axes.imshow(drawn, cmap=colours, norm=LogNorm(low, top), interpolation="nearest")
    below = len(known) > 0 and float(known.min()) < low
    marks = {value: f"{float(f'{100 * value:.2g}'):g} %" for value in ticks(low, top)}
    _bar(figure, axes, shown, marks, "error, share of the readers' output variance", below)


def ticks(low: float, top: float) -> list[float]:
    """Round values between two positive ones: 1, 2 and 5 of each decade, or only 1 where there are more than 8."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(top))) + 1)
    fine = [value for k in decades for step in (1, 2, 5) if low <= (value := float(f"{step}e{k}")) <= top]
    coarse = [value for value in fine if f"{value:e}".startswith("1.")]
    if len(fine) > 8:
        return coarse
    return fine if len(fine) > 1 else [float(f"{value:.2g}") for value in (low, top)]


def _bar(
    figure: Figure, axes: Axes, shown: AxesImage, marks: Mapping[float, str], text: str = "", below: bool = False
) -> None:
    """A colour bar with marks; its lower end is pointed where values lie below it."""
    bar = figure.colorbar(shown, ax=axes, shrink=0.85, pad=0.02, extend="min" if below else "neither")
    bar.set_ticks(list(marks), labels=list(marks.values()))
    bar.ax.minorticks_off()
    bar.set_label(text, color=INK)
    bar.ax.tick_params(length=0, labelsize=9, labelcolor=INK)
    bar.outline.set_visible(False)


def _panel(axes: Axes, labels: list[str], title: str, across: str, down: str) -> None:
    """Labels of the units along both axes where they fit; else only the axes' names."""
    axes.set_title(title, fontsize=11, color=INK)
    axes.spines[:].set_color(FRAME)
    axes.tick_params(length=0, labelcolor=INK)
    few = len(labels) <= LABELLED and max(len(label) for label in labels) < 10
    axes.set_xlabel(across if few else f"{across} ({len(labels)}, similar ones side by side)", color=INK)
    axes.set_ylabel(down, color=INK)
    size = min(9.0, 280 / len(labels))
    positions = range(len(labels)) if few else []
    axes.set_xticks(positions, labels=labels if few else [], fontsize=size, rotation=90 if len(labels) > 20 else 0)
    axes.set_yticks(positions, labels=labels if few else [], fontsize=size)
