"""The HTML page: well-formed, complete, escaped, and in need of nothing outside itself."""

from __future__ import annotations

import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reapx
from reapx.reconstruction import Refit
from reapx.report import html, plots

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


@pytest.fixture(scope="module")
def results() -> dict[bool, reapx.Result]:
    """A result with and one without refit."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tiny().eval()
    images = torch.randn(64, 3, 8, 8, generator=generator)
    plan = reapx.plan(model, images, budget=reapx.MACs(0.6))
    bare = reapx.plan(model, images, budget=reapx.MACs(0.6), selection="magnitude")
    return {True: plan.apply(), False: bare.apply(reconstruct=False)}


@pytest.mark.parametrize("refitted", [True, False])
def test_page_tells_everything(results: dict[bool, reapx.Result], refitted: bool, tmp_path: Path) -> None:
    result = results[refitted]
    path = html.write_report(result, tmp_path / "new" / "report.html")
    assert path == tmp_path / "new" / "report.html"
    checker = parse(path.read_text(encoding="utf-8"))
    assert checker.tags.count("svg") == 1 + refitted
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


def test_everything_is_escaped() -> None:
    """Layer names, headings and captions cannot become markup or formulas."""
    nasty = "<b onclick='x'>&\"$a_b$"
    fits = [Refit(nasty, 0.1, 0.2)]
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


def test_colours_follow_the_page() -> None:
    """No colour of a plot is fixed: each is a role of the style sheet."""
    drawing = plots.errors_figure([Refit("a", 0.01, 0.5), Refit("b", 0.02, 0.4)])
    text = plots.svg(drawing, "errors")
    assert not re.search(r"#0101\d\d", text)
    assert "currentColor" in text and "var(--before)" in text and "var(--after)" in text
    for role in set(re.findall(r"var\((--\w+)\)", text)):
        assert html.STYLE.count(f"{role}:") == 2, "once for light, once for dark"


@pytest.mark.parametrize("error", [0.0, math.nan, 1e-300, 1e6])
def test_odd_errors_are_drawn(error: float) -> None:
    """Zero, unknown, tiny and huge errors do not break the logarithmic axis."""
    drawing = plots.errors_figure([Refit("a", error, error)])
    parse(html.page("t", [html.figure(drawing, "errors")]))


def test_matplotlib_state_is_left_alone() -> None:
    """Drawing imports no pyplot and leaves the user's settings."""
    import matplotlib

    before, loaded = dict(matplotlib.rcParams), set(sys.modules)
    plots.svg(plots.errors_figure([Refit("a", 0.1, 0.2)]), "errors")
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in set(sys.modules) - loaded


def test_without_matplotlib(results: dict[bool, reapx.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(reapx.ReapxError, match=r'pip install "reapx\[report\]"'):
        html.write_report(results[True], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
