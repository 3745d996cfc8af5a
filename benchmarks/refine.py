"""Pruned networks that are refined without labels, judged on images that neither fits nor refinement have seen.

    python benchmarks/refine.py [--quick] [--device cpu|cuda] [--json FILE] [--only NAME ...] [--again]

Each row is a network at a budget, pruned and refined with the defaults on the same unlabelled images (one row: pruned
with 1000, refined with 5000): accuracy on the judged images of the original, the pruned and the refined network, and
seconds. Networks and images are those of ``heldout.py``. A row that is in the file already is not measured again.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import models
import torch
from heldout import JOBS
from tables import table
from timing import RESULTS, Target, known_rows, parser, write

import reapx


@dataclass(frozen=True)
class Case:
    """A network, its budget, and how many images refine it where they are not those it was pruned with."""

    network: str
    budget: float
    images: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "resnet56 x0.5": Case("resnet56", 0.5),
    "resnet56 x0.5, 5000 images": Case("resnet56", 0.5, 5000, {"steps": 1500}),
    "resnet56 x0.35": Case("resnet56", 0.35),
    "resnet20 x0.5": Case("resnet20", 0.5),
    "vgg16bn x0.2": Case("vgg16bn", 0.2),
    "efficientnet-lite0 x0.7": Case("efficientnet-lite0", 0.7),
    "squeezenet x0.7": Case("squeezenet", 0.7),
}


def measure(name: str, target: Target, quick: bool) -> dict[str, object]:
    """The row of one case."""
    case = CASES[name]
    job = JOBS[case.network]
    images, (tests, labels) = job.images()
    model = job.build().to(target.device)
    if quick:
        images, tests, labels = images[:64], tests[:100], labels[:100]
    images, tests, labels = (tensor.to(target.device) for tensor in (images, tests, labels))
    start = target.now()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", reapx.CalibrationWarning)
        result = reapx.prune(model, images, budget=reapx.MACs(case.budget), **job.options)
    pruned = target.now()
    more = None if case.images is None else models.cifar10("train_1", case.images)[0].to(target.device)
    refined = result.refine(more, **({"steps": 10} if quick else case.options))
    seconds = target.now() - pruned
    assert refined.refinement is not None
    outputs = [models.outputs_of(each, tests) for each in (model, result.model, refined.model)]
    return {
        "work": "refine",
        "case": name,
        "images": len(images) if more is None else len(more),
        "judged": len(tests),
        "accuracy": [round(float((found.argmax(1) == labels).float().mean()), 4) for found in outputs],
        "change": [round(change, 4) for change in (result.change, refined.refinement.before, refined.change)],
        "fresh": [round(models.output_error(found, outputs[0]), 4) for found in outputs[1:]],
        "steps": refined.refinement.steps,
        "points": [(step, round(change, 4)) for step, change in refined.refinement.points],
        "execution": vars(refined.refinement.execution),
        "prune_seconds": round(pruned - start, 1),
        "refine_seconds": round(seconds, 1),
    }


def show(rows: list[dict[str, object]]) -> str:
    """The rows as a table."""
    header = ["case", "images", "top-1 before, pruned, refined", "fresh", "steps", "prune s", "refine s"]
    keys = ["case", "images", "accuracy", "fresh", "steps", "prune_seconds", "refine_seconds"]
    return table([[str(row[key]) for key in keys] for row in rows], header)


def main() -> None:
    """Run the cases."""
    arguments = parser(__doc__, "one small case, few images and steps")
    arguments.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    arguments.add_argument("--again", action="store_true", help="measure rows anew that are in the file")
    options = arguments.parse_args()
    if not models.has_data():
        return
    target = Target.of(options.device)
    torch.set_flush_denormal(True)
    if options.quick:
        print(show([measure("resnet20 x0.5", target, quick=True)]))
        return
    path = options.json or RESULTS / f"refine{'_cuda' if target.cuda else ''}.json"
    rows = known_rows(path)
    for name in options.only:
        if CASES[name].network == "efficientnet-lite0" and not models.has_efficientnet():
            continue
        if not options.again and any(row["case"] == name for row in rows):
            continue
        rows = [*(row for row in rows if row["case"] != name), measure(name, target, quick=False)]
        write("refine", rows, path, target)
        print(show(rows[-1:]), flush=True)
    print(show(rows))


if __name__ == "__main__":
    main()
