"""What a notebook shows: short HTML tables, data frames, plots and progress bars."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import reapx
from reapx.calibration.progress import progress_of
from reapx.notebook.html import SHOWN, summary_html


@pytest.fixture(scope="module")
def plan() -> reapx.Plan:
    torch.manual_seed(0)
    layers = [layer for k in range(SHOWN + 2) for layer in (nn.Linear(12 if k else 6, 12), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(12, 3)).eval()
    return reapx.plan(model, torch.randn(100, 6), budget=reapx.MACs(0.6))


def test_a_plan_has_a_short_repr_whatever_was_asked_for(plan: reapx.Plan) -> None:
    assert len(repr(plan)) < 300
    long = plan.with_removed({entry.group.name: [0] for entry in plan.groups})
    assert len(repr(long)) < 300


def test_html_shows_each_group_once_and_folds_the_rest(plan: reapx.Plan) -> None:
    result = plan.apply()
    for shown in (plan, plan.inspection, result):
        html = shown._repr_html_()
        names = [fit.layer for fit in result.fits] if shown is result else [each.group.name for each in plan.groups]
        visible, _, folded = html.partition("<details>")
        assert [f">{name}</td>" in visible for name in names] == [k < SHOWN for k in range(len(names))]
        assert all(f">{name}</td>" in folded for name in names[SHOWN:])
    assert plan.tradeoff()._repr_html_().count("<tr>") == 9  # with the header, eight points of the whole way down


def test_names_in_html_are_escaped() -> None:
    assert "<script>" not in summary_html(["<script>"], ["<script>"], [["<script>"]], "a\n<script>")


def test_tables_hold_what_the_plan_says(plan: reapx.Plan, tmp_path: Path) -> None:
    frame = plan.to_dataframe()
    assert frame["after"].tolist() == [entry.channels[1] for entry in plan.groups]
    with plan.to_csv(tmp_path / "new" / "plan.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["output_error"]) for row in rows] == [entry.output_error for entry in plan.groups]

    points, curves = plan.tradeoff(), plan.curves()
    name = plan.groups[0].group.name
    assert points.to_dataframe()[f"width of {name}"].tolist() == [point.widths[name] for point in points]
    table = curves.to_dataframe()
    assert table[table["group"] == name]["error"].tolist() == curves[name].errors.tolist()
    assert table["measured"].sum() == sum(len(curve.measured) for curve in curves.values())


def test_without_pandas_the_error_names_the_cure(plan: reapx.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(reapx.ReapxError, match="pip install pandas, or write a file with to_csv"):
        plan.to_dataframe()


def test_plots_show_all_widths_and_points(plan: reapx.Plan) -> None:
    kept = [bar.get_width() for bar in plan.plot().axes[0].containers[1]]
    assert kept == [entry.channels[1] for entry in plan.groups]
    points = plan.tradeoff()
    assert list(points.plot().axes[0].lines[0].get_ydata()) == [point.error for point in points]


def test_bars_are_shown_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    for config, shown in (({"IPKernelApp": {}}, True), ({}, False)):
        shell = SimpleNamespace(config=config)
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert progress_of(None).bars is shown
        assert not progress_of(None, print).bars
