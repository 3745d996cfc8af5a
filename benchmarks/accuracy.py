"""Top-1 over MACs of ResNet-56: channels removed, refitted, retrained; drawn from the rows of reproduce/'s scripts.

python benchmarks/reproduce/pro_resnet56.py
python benchmarks/reproduce/selections.py
python benchmarks/reproduce/retrain_resnet56.py
python benchmarks/accuracy.py
"""

from __future__ import annotations

import json
from typing import Any

import matplotlib
from matplotlib import pyplot
from timing import RESULTS

Points = list[tuple[float, float]]


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a file of results."""
    rows: list[dict[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return rows


def removed() -> Points:
    """Share of the MACs and top-1 where the smallest weights are removed, and nothing is refitted."""
    rows = [row for row in rows_of("selections") if row.get("job") == "resnet56"]
    found = {
        (row["macs"][1] / row["macs"][0], row["without"])
        for row in rows
        if (row.get("selection"), row.get("allocation")) == ("magnitude", "uniform")
    }
    return sorted({(1.0, next(row["before"] for row in rows if "before" in row)), *found})


def refitted(method: str) -> Points:
    """Share of the MACs and top-1 of a method with its refits."""
    rows = [row for row in rows_of("pro_resnet56") if row.get("method") == method and row["work"] == "table V.2"]
    found = [(row["macs"][1] / row["macs"][0], row["accuracy"][1]) for row in rows]
    return sorted([(1.0, rows[0]["accuracy"][0]), *found])


def retrained() -> tuple[float, float]:
    """Share of the MACs and top-1 after a few epochs of retraining."""
    (row,) = [row for row in rows_of("retrain_resnet56") if row["case"] == "resnet56 x0.5"]
    return row["macs"][1] / row["macs"][0], row["accuracy test"]["retrained"]


def main() -> None:
    """Draw the figure."""
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    lines = {
        "PRO & REAP, refitted (the default)": refitted("PRO & REAP"),
        "uniform & REAP, refitted": refitted("uniform & REAP"),
        "smallest weights removed, not refitted": removed(),
    }
    for (label, points), marker in zip(lines.items(), "osD", strict=True):
        axes.plot([share for share, _ in points], [100 * top for _, top in points], f"{marker}-", label=label)
    share, top = retrained()
    axes.plot([share], [100 * top], "k*", markersize=11, label="the default, 7 epochs of retraining")
    axes.set_xlabel("share of the MACs that is left")
    axes.set_ylabel("top-1, ResNet-56 on CIFAR-10 (%)")
    axes.set_ylim(0, 100)
    axes.invert_xaxis()
    axes.grid(linewidth=0.4)
    axes.legend(fontsize="small", loc="lower left")
    figure.savefig(RESULTS / "accuracy.png", dpi=110)
    print("wrote benchmarks/results/accuracy.png")


if __name__ == "__main__":
    main()
