"""Accuracy over parameters removed, of the results of ``adam_l2_mnist.py`` and ``adam_l2_cifar.py`` (Figures 6 and 7).

python benchmarks/reproduce/sparse_plot.py FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parents[1] / "results"
PANELS = {"adam_l2_mnist": "MNIST, 784-500-300-10", "adam_l2_cifar": "CIFAR-10, 16 layers, a quarter of VGG16's widths"}
COLOURS = {"adam_l2": "C0", "group lasso": "C1", "group sparse": "C2", "adam": "0.2", "adamw": "0.5", "sgd": "0.7"}
NAMES = {"adam_l2": "Adam + L2", "adam": "Adam", "adamw": "AdamW", "sgd": "momentum SGD + L2"}


def main() -> None:
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    stems = [stem for stem in PANELS if (RESULTS / f"{stem}.json").is_file()]
    for axes, stem in zip(figure.subplots(1, len(stems), squeeze=False)[0], stems, strict=True):
        means = json.loads((RESULTS / f"{stem}.json").read_text())["means"]
        for method in dict.fromkeys(line["method"] for line in means):
            own = sorted((line for line in means if line["method"] == method), key=lambda line: line["removed"])
            values = [[100 * line[name] for line in own] for name in ("removed", "compact_accuracy")]
            spread = [[100 * line[f"{name}_spread"] for line in own] for name in ("removed", "compact_accuracy")]
            label, colour = NAMES.get(method, method), COLOURS[method]
            axes.errorbar(*values, yerr=spread[1], xerr=spread[0], marker="o", capsize=2, label=label, color=colour)
            if method == "adam_l2":
                for index, (line, left, height) in enumerate(zip(own, *values, strict=True)):
                    offset = (0, -15 if index % 2 else 8)
                    text = f"λ = {line['strength']:.0e}".replace("e-0", "e-")
                    axes.annotate(text, (left, height), offset, textcoords="offset points", ha="center", fontsize=7)
        axes.set(title=PANELS[stem], xlabel="parameters removed, %", ylabel="test accuracy, %")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(sys.argv[1], dpi=130)


if __name__ == "__main__":
    main()
