"""Plots of PRO's allocation: error curves of the groups, and the trade-off between error and cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..costs.budget import Budget, MACs, Params, Size
from ..text import output_text
from . import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..planning.group_plan import GroupPlan
    from ..planning.plan import Plan

Values = npt.NDArray[np.float64]

DECADES = 5
"""Decades that a logarithmic axis spans; smaller errors and zeros are drawn at its lower edge."""

DASHED = (0.0, (4.0, 2.0))

NAMED = 6
"""Largest number of groups that are all named beside a plot; of more, the first, middle and last are named."""


@dataclass(frozen=True)
class Line:
    """The curve of one group, pruned alone; arrays have an entry for each number of removed units, in ascending order.

    Attributes:
        name: Name of the group.
        residual_stream: Whether it is a residual stream.
        colour: Depends on the group's position between the network's front and end.
        removed: Removed units as a share of the group.
        saved: Saved cost as a share of the whole network's cost.
        errors: Error at the network's outputs.
        hull: Indices of the corners of the lower convex hull of ``errors`` over ``saved``.
        measured: (removed, saved, error) of the measured widths.
        chosen: (removed, saved, error) of the plan's width.
    """

    name: str
    residual_stream: bool
    colour: str
    removed: Values
    saved: Values
    errors: Values
    hull: list[int]
    measured: list[tuple[float, float, float]]
    chosen: tuple[float, float, float]


def lines(plan: Plan) -> list[Line]:
    """The curves of all groups of a plan that can lose units, from the front of the network to its end.

    Raises:
        InputError: the plan's allocation measured no errors.
    """
    curves = plan.curves()
    assert plan._tradeoff is not None
    allowed = plan._tradeoff.allowed
    taking = [entry for entry in plan.groups if len(allowed[entry.group.name]) > 1]
    last = max(len(taking) - 1, 1)
    colours = [plots.DEPTHS[round((len(plots.DEPTHS) - 1) * index / last)] for index in range(len(taking))]
    found = []
    for entry, colour in zip(taking, colours, strict=True):
        name = entry.group.name
        found.append(_line(plan, entry, colour, allowed[name], curves[name].errors, curves[name].measured))
    return found


def _line(
    plan: Plan,
    entry: GroupPlan,
    colour: str,
    allowed: npt.NDArray[np.int64],
    errors: Values,
    measured: Sequence[tuple[int, float]],
) -> Line:
    group, costs, kind = entry.group, plan._found.costs, type(plan.budget)
    cost = costs.along(kind, group.name, costs.full)
    saved = (cost[group.size] - cost[::-1]) / max(float(costs.of(kind)), 1e-300)  # after 0, 1, ... removals
    counts = np.arange(group.size - int(allowed[-1]), group.size - int(allowed[0]) + 1)
    corners = group.size - allowed[::-1]
    corners = corners[lower_hull(saved[corners], errors[corners])]

    def point(count: int, error: float) -> tuple[float, float, float]:
        return count / group.size, float(saved[count]), error

    removals = group.size - entry.kept
    return Line(
        group.name,
        group.residual_stream,
        colour,
        counts / group.size,
        saved[counts],
        errors[counts],
        [int(corner - counts[0]) for corner in corners],
        [point(count, error) for count, error in measured],
        point(removals, float(errors[removals])),
    )


def lower_hull(saved: Values, errors: Values) -> list[int]:
    """Indices of the corners of the lower convex hull of errors over savings, starting at the first entry.

    Example: savings 0, 1, 2, 3 and errors 0, 4, 2, 6 give the corners 0, 2, 3.
    """
    corners = [0]
    while True:
        present = corners[-1]
        further = present + np.flatnonzero(saved[present:] > saved[present])
        if len(further) == 0:
            return corners
        slopes = (errors[further] - errors[present]) / (saved[further] - saved[present])
        corners.append(int(further[slopes == slopes.min()][-1]))


def removal_figure(plan: Plan) -> Figure:
    """Error at the outputs over the share of a group's removed units: a line for each group, on a logarithmic axis."""
    shown = lines(plan)
    figure = plots.empty_figure(4.4)
    axes = _axes(figure, plan)
    floor = _logarithmic(axes, plan, [line.errors for line in shown])
    for line in shown:
        heights = np.maximum(line.errors, floor)
        _draw(axes, line, line.removed, heights, linewidth=1.4)
        _dots(axes, line, [(removed, max(error, floor)) for removed, _, error in line.measured])
        _mark(axes, line, line.chosen[0], max(line.chosen[2], floor))
    axes.set_xlim(-0.01, 1.01)
    axes.set_xlabel("share of the group's channels that leave", color=plots.INK)
    _legend(figure, shown)
    return figure


def saving_figure(plan: Plan) -> Figure:
    """Error at the outputs over the share of the network's cost that pruning one group alone saves, with its hull.

    Both axes are linear, since slopes decide. They end a little above the largest chosen error.
    """
    shown = lines(plan)
    figure = plots.empty_figure(4.4)
    axes = _axes(figure, plan)
    top = 1.6 * max((line.chosen[2] for line in shown), default=0.0)
    top = top or max((float(line.errors.max()) for line in shown), default=0.0) or 1.0
    right = 0.0
    for line in shown:
        _draw(axes, line, line.saved, line.errors, linewidth=0.8, alpha=0.35)
        _draw(axes, line, line.saved[line.hull], line.errors[line.hull], linewidth=1.4)
        _dots(axes, line, [(saved, error) for _, saved, error in line.measured])
        _mark(axes, line, line.chosen[1], line.chosen[2])
        right = max(right, line.chosen[1], _crossing(line.saved, line.errors, top))
    axes.set_ylim(-0.02 * top, top)
    axes.set_xlim(-0.015 * right, (right or 1.0) * 1.02)
    axes.yaxis.set_major_formatter(_formatter(plan))
    text = f"share of the network's {cost_name(plan.budget)} saved by pruning the group alone"
    axes.set_xlabel(text, color=plots.INK)
    _legend(figure, shown)
    return figure


def tradeoff_figure(plan: Plan) -> Figure:
    """Predicted error at the outputs over the remaining share of the network's cost, with the plan's point marked."""
    points = plan.tradeoff()
    assert plan._tradeoff is not None
    at = plan._tradeoff.at(plan.budget)
    figure = plots.empty_figure(3.6)
    axes = _axes(figure, plan)
    errors = np.array([point.error for point in points])
    floor = _logarithmic(axes, plan, [errors, np.array([at.error])])
    axes.plot([point.share for point in points], np.maximum(errors, floor), color=plots.AFTER, linewidth=1.8)
    axes.axvline(at.share, color=plots.BEFORE, linewidth=1)
    axes.plot([at.share], [max(at.error, floor)], "o", color=plots.AFTER, markeredgecolor=plots.PAPER, markersize=9)
    text = f"the plan: {_percent(round(at.share, 3))}, error {output_text(at.error, plan.output_measure)}"
    offset, sides = ((-8, -8), ("right", "top")) if at.share > 0.6 else ((8, 8), ("left", "bottom"))
    axes.annotate(text, (at.share, max(at.error, floor)), offset, textcoords="offset points",
                  ha=sides[0], va=sides[1], color=plots.INK, fontsize=8)  # fmt: skip
    axes.set_xlim(0, max(1.0, *(point.share for point in points)) + 0.01)
    axes.set_xlabel(f"share of the network's {cost_name(plan.budget)} that stays", color=plots.INK)
    return figure


def cost_name(budget: Budget) -> str:
    """Name of what a budget counts."""
    return {MACs: "MACs", Params: "parameters", Size: "bytes"}.get(type(budget), "milliseconds")


def _crossing(saved: Values, errors: Values, top: float) -> float:
    """The largest saving at which a curve is still inside the plot."""
    return float(saved[errors <= top].max(initial=0.0))


def _axes(figure: Figure, plan: Plan) -> Axes:
    axes = figure.subplots()
    plots.plain(axes)
    axes.grid(axis="y", color=plots.LINE, linewidth=0.6)
    axes.xaxis.set_major_formatter(_percent)
    kl = plan.output_measure == "kl"
    axes.set_ylabel(f"error at the outputs{', nats' if kl else ''}", color=plots.INK)
    return axes


def _percent(value: float, _: object = None) -> str:
    return f"{100 * value:.10g} %"


def _number(value: float, _: object = None) -> str:
    return f"{value:.10g}"


def _formatter(plan: Plan) -> Callable[[float, object], str]:
    return _number if plan.output_measure == "kl" else _percent


def _logarithmic(axes: Axes, plan: Plan, errors: Sequence[Values]) -> float:
    """Make the error axis logarithmic, and return its lower edge."""
    positive = np.concatenate([[1e-300], *(values[values > 0] for values in errors)])[1:]
    top = float(positive.max(initial=1e-300)) if len(positive) else 1.0
    low = float(positive.min()) if len(positive) else 0.1
    floor = 10.0 ** np.floor(np.log10(max(low, top * 10.0**-DECADES)))
    axes.set_yscale("log")
    axes.set_ylim(floor / 1.3, max(top, 10 * floor) * 1.6)
    axes.yaxis.set_major_formatter(_formatter(plan))
    axes.yaxis.set_minor_formatter("")
    return float(floor)


def _draw(axes: Axes, line: Line, x: Values, y: Values, **style: Any) -> None:
    (drawn,) = axes.plot(x, y, color=line.colour, linestyle=_dashes(line), zorder=2, **style)
    drawn.set_gid(plots.TIP + line.name)


def _dashes(line: Line) -> tuple[float, tuple[float, ...]] | Literal["-"]:
    return DASHED if line.residual_stream else "-"


def _dots(axes: Axes, line: Line, points: Sequence[tuple[float, float]]) -> None:
    """Hollow dots at the measured widths."""
    (drawn,) = axes.plot(
        [x for x, _ in points], [y for _, y in points], "o", markersize=4, markerfacecolor=plots.PAPER,
        markeredgecolor=line.colour, markeredgewidth=1, zorder=3,
    )  # fmt: skip
    drawn.set_gid(plots.TIP + line.name)


def _mark(axes: Axes, line: Line, x: float, y: float) -> None:
    """A filled dot at the chosen width."""
    (drawn,) = axes.plot(
        [x], [y], "o", markersize=8, markerfacecolor=line.colour, markeredgecolor=plots.PAPER, zorder=4, clip_on=False
    )
    drawn.set_gid(f"{plots.TIP}{line.name}: chosen")


def _legend(figure: Figure, shown: Sequence[Line]) -> None:
    """A legend of the groups (of many only the first, middle and last) and of the marks."""
    from matplotlib.lines import Line2D

    named = shown if len(shown) <= NAMED else [shown[0], shown[len(shown) // 2], shown[-1]]
    handles = [
        Line2D([], [], color=line.colour, linestyle=_dashes(line), label=_short_name(line.name)) for line in named
    ]
    if len(named) < len(shown):
        handles[1].set_label(f"{handles[1].get_label()} (halfway)")
    if any(line.residual_stream for line in shown):
        handles.append(Line2D([], [], color=plots.INK, linestyle=DASHED, label="a residual stream"))
    dot: dict[str, Any] = {"marker": "o", "linestyle": "none", "markeredgecolor": plots.INK}
    handles.append(Line2D([], [], markersize=4, markerfacecolor=plots.PAPER, label="measured", **dot))
    handles.append(Line2D([], [], markersize=7, markerfacecolor=plots.INK, label="chosen", **dot))
    legend = figure.legend(
        handles=handles, loc="outside upper left", ncols=3, frameon=False, labelcolor=plots.INK, fontsize=8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _short_name(name: str) -> str:
    """A group's name; a long name of several layers is cut to the first."""
    first, *others = name.split(" + ")
    return name if len(name) <= 24 or not others else f"{first} + {len(others)} more"
