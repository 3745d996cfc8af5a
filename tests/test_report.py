"""The HTML page: well-formed, complete, escaped, and in need of nothing outside itself."""

from __future__ import annotations

import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from measures import by_weights
from torch import Tensor, nn

import reapx
from reapx.reconstruction.layer_refit import LayerRefit
from reapx.report import page as html
from reapx.report import plots, pro_figures

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Checker(HTMLParser):
    """Fails where tags do not nest; collects the page's tags, text and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse(page: str) -> Checker:
    """The page's contents, after checking that it is well-formed and self-contained."""
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open, f"left open: {checker.open}"
    assert not set(checker.tags) & {"script", "link", "iframe", "object", "base"}
    for name, value in checker.attributes:
        if name in ("src", "href", "xlink:href", "srcset"):
            assert value is not None and value.startswith(("#", "data:"))
    assert "http:" not in page and "https:" not in page and "@import" not in page
    ids = [value for name, value in checker.attributes if name == "id"]
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    assert set(used) <= set(ids), "a plot refers to a shape that is not there"
    return checker


class Tiny(nn.Module):
    """Two convolutions with a norm, a sum of two layers, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Conv2d(8, 6, 1)
        self.shortcut = nn.Conv2d(8, 6, 1)
        self.classifier = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out: Tensor = self.classifier((self.second(x).relu() + self.shortcut(x)).mean((2, 3)))
        return out


def tiny() -> tuple[nn.Module, Tensor]:
    """A model and images for it."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tiny().eval()
    return model, torch.randn(64, 3, 8, 8, generator=generator)


@pytest.fixture(scope="module")
def results() -> dict[bool, reapx.Result]:
    """A result with and one without refit."""
    model, images = tiny()
    plan = reapx.plan(model, images, budget=reapx.MACs(0.6))
    bare = reapx.plan(model, images, budget=reapx.MACs(0.6), selection="magnitude")
    return {True: plan.apply(), False: bare.apply(reconstruct=False)}


@pytest.fixture(scope="module")
def uniform() -> reapx.Result:
    """A result whose allocation measured nothing."""
    model, images = tiny()
    return reapx.plan(model, images, budget=reapx.MACs(0.6), allocation="uniform", streams=True).apply()


@pytest.mark.parametrize("refitted", [True, False])
def test_page_tells_everything(results: dict[bool, reapx.Result], refitted: bool, tmp_path: Path) -> None:
    result = results[refitted]
    path = html.write_report(result, tmp_path / "new" / "report.html")
    assert path == tmp_path / "new" / "report.html"
    checker = parse(path.read_text(encoding="utf-8"))
    assert checker.tags.count("svg") == 4 + refitted
    text = "\n".join(checker.text)
    for entry in result.plan.groups:
        assert entry.group.name in text
        assert f"{entry.group.size} → {entry.kept}" in text
    for fit in result.fits:
        assert fit.layer in text
    for frozen in result.plan.frozen:
        assert frozen.layer in text and frozen.reason in text
    assert ("No layer was refitted." in text) is not refitted
    assert f"×{result.plan.macs[1] / result.plan.macs[0]:.3f}" in text
    assert f"{result.gap:.0e}" in text
    assert "nan" not in text


def test_uniform_has_no_allocation_section(uniform: reapx.Result, tmp_path: Path) -> None:
    text = html.write_report(uniform, tmp_path / "uniform.html").read_text(encoding="utf-8")
    checker = parse(text)
    assert checker.tags.count("svg") == 2
    assert "Allocation" not in checker.text and "at the outputs" not in checker.text
    assert "nan" not in text


@pytest.mark.parametrize("allocation", ["pro", "uniform"])
def test_plan_alone(results: dict[bool, reapx.Result], uniform: reapx.Result, tmp_path: Path, allocation: str) -> None:
    """A plan that has not been applied has a page too, without what only a result knows."""
    plan = {"pro": results[True], "uniform": uniform}[allocation].plan
    checker = parse(reapx.write_report(plan, tmp_path / "plan.html").read_text(encoding="utf-8"))
    assert checker.tags.count("svg") == {"pro": 4, "uniform": 1}[allocation]
    assert "Refitted layers" not in checker.text and "proof gap" not in checker.text
    assert ("Allocation" in checker.text) is (allocation == "pro")


def test_lines_follow_the_plan(results: dict[bool, reapx.Result]) -> None:
    """One line a group; its measured and chosen points are the plan's."""
    plan = results[True].plan
    lines = pro_figures.lines(plan)
    assert [line.name for line in lines] == [entry.group.name for entry in plan.groups]
    assert [line.residual_stream for line in lines] == [entry.group.residual_stream for entry in plan.groups]
    assert (lines[0].colour, lines[-1].colour) == (plots.DEPTHS[0], plots.DEPTHS[-1])
    costs = plan._found.costs
    for line, entry in zip(lines, plan.groups, strict=True):
        group = entry.group
        removed = group.size - entry.kept
        alone = {**costs.full, group.name: entry.kept}
        saved = 1 - costs.macs(alone) / costs.macs()
        assert line.chosen == pytest.approx((removed / group.size, saved, entry.output_error))
        measured = plan.curves()[group.name].measured
        assert [(x, error) for x, _, error in line.measured] == [(n / group.size, error) for n, error in measured]
        assert all(np.diff(line.removed) > 0) and all(np.diff(line.saved) > 0) and all(np.diff(line.errors) >= 0)


def drawn(axes: object) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Marker of matplotlib's lines -> coordinates of each, in drawing order; tooltips only."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"lines": [], "dots": [], "chosen": []}
    for line in axes.get_lines():  # type: ignore[attr-defined]
        assert line.get_gid().startswith(plots.TIP)
        kind = "chosen" if line.get_gid().endswith("chosen") else "dots" if line.get_marker() == "o" else "lines"
        found[kind].append((np.asarray(line.get_xdata()), np.asarray(line.get_ydata())))
    return found


def test_removal_figure_marks_the_chosen_widths(results: dict[bool, reapx.Result]) -> None:
    plan = results[True].plan
    (axes,) = pro_figures.removal_figure(plan).axes
    found = drawn(axes)
    floor = min(float(y.min()) for _, y in found["lines"])
    assert len(found["lines"]) == len(found["dots"]) == len(found["chosen"]) == len(plan.groups)
    for (x, y), entry in zip(found["chosen"], plan.groups, strict=True):
        assert x == pytest.approx([1 - entry.kept / entry.group.size])
        assert y == pytest.approx([max(entry.output_error, floor)])
    assert axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    for _, y in found["lines"]:
        assert low < y.min() and y.max() < high
    for (x, _), entry in zip(found["dots"], plan.groups, strict=True):
        counts = [count for count, _ in plan.curves()[entry.group.name].measured]
        assert x == pytest.approx([count / entry.group.size for count in counts])


def test_saving_figure_marks_lie_inside_and_above_the_hull(results: dict[bool, reapx.Result]) -> None:
    plan = results[True].plan
    (axes,) = pro_figures.saving_figure(plan).axes
    found = drawn(axes)
    assert len(found["lines"]) == 2 * len(plan.groups), "a curve and its hull"
    assert len(found["chosen"]) == len(plan.groups)
    hulls = found["lines"][1::2]
    for (x, y), (hull_x, hull_y), line in zip(found["chosen"], hulls, pro_figures.lines(plan), strict=True):
        assert (x[0], y[0]) == pytest.approx(line.chosen[1:])
        assert axes.get_xlim()[0] < x[0] < axes.get_xlim()[1] and axes.get_ylim()[0] < y[0] < axes.get_ylim()[1]
        assert y[0] >= np.interp(x[0], hull_x, hull_y) - 1e-12


def test_lower_hull_is_convex_and_below() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        saved = np.concatenate([[0.0], np.cumsum(generator.uniform(0.1, 1.0, 20))])
        errors = np.concatenate([[0.0], np.cumsum(generator.uniform(0.0, 1.0, 20))])
        hull = pro_figures.lower_hull(saved, errors)
        assert hull[0] == 0 and hull[-1] == 20
        assert all(np.diff(np.diff(errors[hull]) / np.diff(saved[hull])) > -1e-12)
        assert all(errors >= np.interp(saved, saved[hull], errors[hull]) - 1e-12)
    assert pro_figures.lower_hull(np.array([0.0, 1.0, 0.5]), np.array([0.0, 1.0, 0.2])) == [0, 2], "never back"
    assert pro_figures.lower_hull(np.array([0.0, 1.0, 0.5]), np.array([0.0, 0.1, 0.2])) == [0, 1], (
        "only what saves more"
    )


def test_tradeoff_figure_marks_the_plan(results: dict[bool, reapx.Result]) -> None:
    plan = results[True].plan
    for planned in (plan, plan.at(reapx.MACs(0.4)), plan.at(reapx.Params(0.5))):
        (axes,) = pro_figures.tradeoff_figure(planned).axes
        curve, _, mark = axes.get_lines()
        kind = planned.macs if isinstance(planned.budget, reapx.MACs) else planned.params
        assert len(curve.get_xdata()) == len(planned.tradeoff())
        assert (mark.get_xdata()[0], mark.get_ydata()[0]) == pytest.approx((kind[1] / kind[0], planned.output_error))


def test_streams_that_stay_have_no_line() -> None:
    model, images = tiny()
    plan = reapx.plan(model, images, budget=reapx.MACs(0.8), streams=False)
    assert [line.residual_stream for line in pro_figures.lines(plan)] == [False]
    (axes,) = pro_figures.removal_figure(plan).axes
    assert len(drawn(axes)["lines"]) == 1


def test_bounds_and_rounding_limit_the_lines() -> None:
    """A line starts and ends at the widths that are allowed; corners of its hull are allowed widths."""
    model, images = tiny()
    bounds = {"first.0": (2, 6)}
    plan = reapx.plan(model, images, budget=reapx.MACs(0.7), round_to=2, bounds=bounds)
    line = pro_figures.lines(plan)[0]
    assert line.removed[[0, -1]] == pytest.approx([2 / 8, 6 / 8])
    assert {round(8 * x) for x in line.removed[line.hull]} <= {2, 4, 6}


def test_many_groups_are_not_all_named(results: dict[bool, reapx.Result]) -> None:
    """The legend names a few groups, whatever their number."""
    from matplotlib.figure import Figure

    line = pro_figures.lines(results[True].plan)[0]
    for count, named in ((3, 3), (28, 3)):
        figure = Figure()
        pro_figures._legend(figure, [line] * count)
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert sum(label.startswith(line.name) for label in labels) == named
        assert {"measured", "chosen"} <= set(labels)


def test_kl_errors_are_no_percentages() -> None:
    model, images = tiny()
    plan = reapx.plan(model, images, budget=reapx.MACs(0.7), output_error="kl")
    (axes,) = pro_figures.saving_figure(plan).axes
    assert "nats" in axes.get_ylabel() and "%" not in axes.yaxis.get_major_formatter()(0.5)
    assert "nats" in str(plan) and "nats" in "".join(html.result_sections(plan))


def test_latency_is_told() -> None:
    """Milliseconds before, planned and measured after, in the text and on the page."""
    model, images = tiny()
    plan = reapx.plan(model, images, budget=reapx.Latency(0.99, batch=2, measure=by_weights))
    assert plan.latency is not None and plan.latency[1] <= 0.99 * plan.latency[0]
    result = plan.apply()
    assert result.latency is not None and min(result.latency) > 0
    ratio = plan.latency[1] / plan.latency[0]
    assert result.latency[1] == pytest.approx(ratio * result.latency[0])  # at the speed of the later moment
    for text in (str(plan), str(result)):
        assert "a batch of 2 by by_weights" in text
    assert f"{result.latency[2]:.2f} ms measured" in str(result)
    page = "".join(html.result_sections(result))
    assert "ms for a batch of 2" in page and f"measured, {result.latency[1]:.2f} planned" in page
    other = plan.at(reapx.MACs(0.7))
    assert other.latency is None and other.apply().latency is None


def test_tooltips_are_escaped(results: dict[bool, reapx.Result]) -> None:
    figure = plots.empty_figure(2)
    nasty = "<b onclick='x'>&\"$a_b$"
    (line,) = figure.subplots().plot([1, 2], [1, 2])
    line.set_gid(plots.TIP + nasty)
    checker = parse(html.page("t", [html.figure(figure, "c")]))
    assert nasty in checker.text and "b" not in checker.tags


def test_everything_is_escaped() -> None:
    """Layer names, headings and captions cannot become markup or formulas."""
    nasty = "<b onclick='x'>&\"$a_b$"
    fits = [LayerRefit(nasty, 0.1, 0.2)]
    drawing = plots.errors_figure(fits)
    panels = plots.panels_figure([nasty, "other"], [(nasty, [1.0, 2.0]), ("zeros", [0.0, 0.0])])
    parts = [
        html.table([nasty, nasty], [[nasty, nasty]]),
        html.paragraph(nasty),
        html.tiles([(nasty, nasty, nasty)]),
        html.figure(drawing, nasty),
        html.figure(panels, nasty),
    ]
    page = html.page(nasty, [html.section(nasty, *parts)], nasty)
    checker = parse(page)
    assert "<b " not in page
    assert checker.tags.count("b") == 1, "only the tile's own"
    assert all(name != "onclick" for name, _ in checker.attributes)
    assert sum(nasty in part for part in checker.text) >= 12


def test_colours_follow_the_page(results: dict[bool, reapx.Result]) -> None:
    """No colour of a plot is fixed: each is a role of the style sheet."""
    drawing = plots.errors_figure([LayerRefit("a", 0.01, 0.5), LayerRefit("b", 0.02, 0.4)])
    text = plots.svg(drawing, "errors")
    assert not re.search(r"#0101\d\d", text)
    assert "currentColor" in text and "var(--before)" in text and "var(--after)" in text
    figures = [
        draw(results[True].plan)
        for draw in (pro_figures.removal_figure, pro_figures.saving_figure, pro_figures.tradeoff_figure)
    ]
    text += "".join(plots.svg(figure, "allocation") for figure in figures)
    assert not re.search(r"#0101\d\d", text) and "var(--depth0)" in text and "var(--paper)" in text
    for role in set(re.findall(r"var\((--\w+)\)", text)):
        assert html.STYLE.count(f"{role}:") == 2, "once for light, once for dark"


@pytest.mark.parametrize("error", [0.0, math.nan, 1e-300, 1e6])
def test_odd_errors_are_drawn(error: float) -> None:
    """Zero, unknown, tiny and huge errors do not break the logarithmic axis."""
    drawing = plots.errors_figure([LayerRefit("a", error, error)])
    parse(html.page("t", [html.figure(drawing, "errors")]))


def test_matplotlib_state_is_left_alone() -> None:
    """Drawing imports no pyplot and leaves the user's settings."""
    import matplotlib

    before, loaded = dict(matplotlib.rcParams), set(sys.modules)
    plots.svg(plots.errors_figure([LayerRefit("a", 0.1, 0.2)]), "errors")
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in set(sys.modules) - loaded


def test_without_matplotlib(results: dict[bool, reapx.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(reapx.ReapxError, match=r'pip install "reapx\[report\]"'):
        html.write_report(results[True], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
