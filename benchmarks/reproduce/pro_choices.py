"""How PRO's settings were chosen: ResNet-56 on CIFAR-10, on training images that calibration has not seen.

    python benchmarks/reproduce/pro_choices.py [--quick] [--device cpu|cuda] [--json FILE]

Each row changes one setting and reports, for two budgets, how far the pruned network is from the original on 5000
images of the second half of the training set: squared difference of the outputs (a share of their variance),
Kullback-Leibler divergence, and accuracy. The pretrained network has been trained on these images, so the accuracies
are too high as such; they only compare settings. Test images are not looked at.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import models
import torch
from tables import table
from timing import Target, parser, write
from torch import Tensor

import reapx

BUDGETS = (0.5, 0.35)
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "points=1": {"points": 1},
    "points=4": {"points": 4},
    "points=8": {"points": 8},
    "rounds=2": {"rounds": 2},
    "output_error='kl'": {"output_error": "kl"},
    "500 calibration images": {"count": 500},
    "streams=False": {"streams": False},
    "damping=1e-3": {"damping": 1e-3},
    "damping=3e-2": {"damping": 3e-2},
    "rectify=0": {"rectify": 0},
    "rectify=1": {"rectify": 1},
    "rectify=4": {"rectify": 4},
    "allocation='uniform'": {"allocation": "uniform"},
}


def measure(name: str, images: Tensor, held: Tensor, labels: Tensor, target: Target) -> list[dict[str, object]]:
    """A row for each budget."""
    options = dict(SETTINGS[name])
    images = images[: options.pop("count", len(images))]
    rectify = {"rectify": options.pop("rectify")} if "rectify" in options else {}
    model = models.cifar_resnet(56).to(target.device)
    wanted = models.outputs_of(model, held)
    rows: list[dict[str, object]] = []
    plan: reapx.Plan | None = None
    for budget in BUDGETS:
        own, start = reapx.MACs(budget), target.now()
        if plan is not None and options.get("rounds", 1) == 1 and options.get("allocation") != "uniform":
            plan = plan.at(own)
        else:
            plan = reapx.plan(model, images, budget=own, **options)
        planned = target.now()
        result = plan.apply(**rectify)
        applied = target.now()
        outputs = models.outputs_of(result.model, held)
        divergence = torch.nn.functional.kl_div(
            outputs.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True
        )
        rows.append(
            {
                "setting": name,
                "budget": budget,
                "squared": models.output_error(outputs, wanted),
                "kl": float(divergence),
                "accuracy": float((outputs.argmax(1) == labels).float().mean()),
                "plan_seconds": round(planned - start, 1),
                "apply_seconds": round(applied - planned, 1),
                "widths": [entry.kept for entry in plan.groups],
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """All settings."""
    arguments = parser(__doc__, "one setting, few images")
    arguments.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    options = arguments.parse_args()
    if not models.has_data():
        return
    target = Target.of(options.device)
    images = models.cifar10("train_1", 100 if options.quick else 1000)[0].to(target.device)
    held, labels = (tensor.to(target.device) for tensor in models.cifar10("train_2", 200 if options.quick else 5000))
    rows = [
        row
        for name in (options.only[:1] if options.quick else options.only)
        for row in measure(name, images, held, labels, target)
    ]
    lines = [
        [
            str(row["setting"]),
            f"x{row['budget']}",
            f"{100 * row['squared']:.2f} %",  # type: ignore[operator]
            f"{row['kl']:.4f}",
            f"{100 * row['accuracy']:.2f} %",  # type: ignore[operator]
            f"{row['plan_seconds']} + {row['apply_seconds']}",
        ]
        for row in rows
    ]
    print(table(lines, ["setting", "MACs", "squared", "KL", "accuracy", "seconds"]))
    if not options.quick or options.json:
        write("pro_choices", rows, options.json, target)


if __name__ == "__main__":
    main()
