"""How many images do I need? Accuracy over the number of calibration images, drawn from the rows of heldout.py.

python benchmarks/heldout.py --only resnet56 vgg16bn --images 50 100 200 500
python benchmarks/heldout.py --only efficientnet-lite0 --images 50 100 200
python benchmarks/images_needed.py
"""

from __future__ import annotations

import json

import matplotlib
from matplotlib import pyplot
from timing import RESULTS

CASES = {
    "resnet56 x0.5": "ResNet-56, CIFAR-10, MACs ×0.50",
    "vgg16bn x0.5": "VGG16-BN, CIFAR-10, MACs ×0.50",
    "vgg16bn x0.2": "VGG16-BN, CIFAR-10, MACs ×0.20",
    "efficientnet-lite0 x0.85": "EfficientNet-lite0, ImageNet, MACs ×0.85",
    "efficientnet-lite0 x0.7": "EfficientNet-lite0, ImageNet, MACs ×0.70",
}


def main() -> None:
    """Draw the figure."""
    matplotlib.use("Agg")
    rows = json.loads((RESULTS / "heldout.json").read_text())["rows"]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for case, label in CASES.items():
        found = sorted((row["images"], *row["accuracy"]) for row in rows if row["case"] == case)
        losses = [100 * (before - after) for _, before, after in found]
        axes.plot([count for count, *_ in found], losses, "o-", label=label)
    axes.set_xscale("log")
    axes.set_xticks([50, 100, 200, 500, 1000], ["50", "100", "200", "500", "1000"])
    axes.minorticks_off()
    axes.set_ylim(-2, 9)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("calibration images, a quarter of them held out")
    axes.set_ylabel("points of top-1 lost, before retraining")
    axes.legend(fontsize="small")
    figure.savefig(RESULTS / "images_needed.png", dpi=110)
    print("wrote benchmarks/results/images_needed.png")


if __name__ == "__main__":
    main()
