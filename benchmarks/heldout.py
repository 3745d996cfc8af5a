"""Pruned networks judged on images that no fit has seen, next to what the plan and the result say of themselves.

    python benchmarks/heldout.py [--quick] [--device cpu|cuda] [--json FILE] [--only NAME ...] [--images NUMBER ...]

Rows: accuracy on the judged images before and after, the change of the outputs there, what ``result.change`` says, the
error that PRO predicted, and seconds. ImageNet networks are calibrated on 500 of the 1000 images at hand, without
labels, and judged on the other 500; CIFAR networks on 1000 training images, and judged on the whole test set.
``--images`` calibrates on fewer of them; ``images_needed.py`` draws that. A row that is in the file already is not
measured again, so that a run that was cut off goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import models
import torch
from tables import table
from timing import RESULTS, Target, known_rows, parser, write
from torch import Tensor, nn

import reapx

torch.manual_seed(0)

Judged = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Job:
    """A network, the images it is calibrated on, those it is judged on, and budgets as shares of its MACs.

    Attributes:
        all_images: Number of calibration images.
        options: Arguments of ``reapx.plan`` that are not the defaults, chosen by ``result.change``, which sees
            calibration images alone.
    """

    build: Callable[[], nn.Module]
    images: Callable[[], tuple[Tensor, Judged]]
    budgets: tuple[float, ...]
    all_images: int
    options: Mapping[str, Any] = field(default_factory=dict)


def _halves(sample: Callable[[], Judged]) -> tuple[Tensor, Judged]:
    """Even images to calibrate on, odd ones to judge: there is one image of each class."""
    images, labels = sample()
    return images[0::2].clone(), (images[1::2].clone(), labels[1::2])


def _cifar(norm: tuple[tuple[float, ...], ...]) -> tuple[Tensor, Judged]:
    return models.cifar10("train_1", 1000, norm)[0], models.cifar10("test", norm=norm)


JOBS = {
    "efficientnet-lite0": Job(
        models.efficientnet_lite0, lambda: _halves(models.efficientnet_sample), (0.70, 0.85), 500
    ),
    "squeezenet": Job(models.squeezenet, lambda: _halves(models.imagenet_sample), (0.70,), 500, {"output_error": "kl"}),
    "vgg16bn": Job(models.cifar_vgg16bn, lambda: _cifar(models.VGG_NORM), (0.5, 0.2), 1000),
    "resnet56": Job(lambda: models.cifar_resnet(56), lambda: _cifar(models.RESNET_NORM), (0.5,), 1000),
    "resnet20": Job(lambda: models.cifar_resnet(20), lambda: _cifar(models.RESNET_NORM), (0.5,), 1000),
}


def measure(name: str, count: int | None, judged: int | None, target: Target) -> Iterator[dict[str, object]]:
    """One row for each budget, from one plan; ``count`` and ``judged`` are numbers of images, None for all."""
    job = JOBS[name]
    images, (tests, labels) = job.images()
    model = job.build().to(target.device)
    if count is not None:
        images = images[torch.arange(count) * len(images) // count]  # of all classes
    images, tests, labels = (tensor.to(target.device) for tensor in (images, tests[:judged], labels[:judged]))
    before = models.outputs_of(model, tests)
    plan = None
    for budget in job.budgets:
        start = target.now()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", reapx.CalibrationWarning)
            if plan is None:
                plan = reapx.plan(model, images, budget=reapx.MACs(budget), **job.options)
                planning = target.now() - start
            else:
                plan = plan.at(reapx.MACs(budget))
            planned = target.now()
            result = plan.apply()
        end = target.now()
        after = models.outputs_of(result.model, tests)
        hits = [float((outputs.argmax(1) == labels).float().mean()) for outputs in (before, after)]
        yield {
            "work": "held out",
            "case": f"{name} x{budget}",
            "images": len(images),
            "judged": len(tests),
            "options": dict(job.options),
            "accuracy": [round(share, 4) for share in hits],
            "macs": plan.macs,
            "change_said": round(result.change, 4),
            "change_fresh": round(models.output_error(after, before), 4),
            "predicted": round(plan.output_error, 4),
            "plan_seconds": round(planning, 1),
            "apply_seconds": round(end - planned, 1),
            "warnings": sorted({str(warning.message) for warning in caught}),
        }


def show(rows: list[dict[str, object]]) -> str:
    """The rows as a table."""
    header = ["case", "images", "top-1 before, after", "change said", "change fresh", "predicted", "plan s", "apply s"]
    keys = ["case", "images", "accuracy", "change_said", "change_fresh", "predicted", "plan_seconds", "apply_seconds"]
    return table([[str(row[key]) for key in keys] for row in rows], header)


def main() -> None:
    """Run the jobs."""
    arguments = parser(__doc__, "one small job, few images")
    arguments.add_argument("--only", nargs="*", default=list(JOBS), choices=list(JOBS))
    arguments.add_argument("--images", nargs="*", type=int, default=[None], help="numbers of calibration images")
    arguments.add_argument("--again", action="store_true", help="measure rows anew that are in the file")
    options = arguments.parse_args()
    if not models.has_data():
        return
    target = Target.of(options.device)
    if options.quick:
        print(show(list(measure("resnet20", 100, 100, target))))
        return
    path = options.json or RESULTS / f"heldout{'_cuda' if target.cuda else ''}.json"
    rows = known_rows(path)
    for name in options.only:
        if name == "efficientnet-lite0" and not models.has_efficientnet():
            continue
        for count in options.images:
            wanted = {(f"{name} x{budget}", count or JOBS[name].all_images) for budget in JOBS[name].budgets}
            if not options.again and wanted <= {_key(row) for row in rows}:
                continue
            for row in measure(name, count, None, target):
                rows = [*(old for old in rows if _key(old) != _key(row)), row]
                write("heldout", rows, path, target)
                print(show([row]), flush=True)
    print(show(rows))


def _key(row: dict[str, object]) -> tuple[object, object]:
    return row["case"], row["images"]


if __name__ == "__main__":
    main()
