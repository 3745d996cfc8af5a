"""The main job on real networks: prune to a budget without labels or retraining, and measure everything.

    python benchmarks/halve.py [--quick] [--json FILE] [--only NAME ...]

Rows: accuracy on the test images before and after, MACs, parameters, seconds of plan and apply, peak memory beside
model and images, milliseconds per batch before and after, and the proof (pruned against masked).
Calibration images are training images without labels; for SqueezeNet, of which only 1000 images are at
hand, they are the first half of those and accuracy is counted on the other half as well as on all.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import models
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import reference
from timing import PeakMemory, interleaved, parser, write
from torch import Tensor, nn

import reapx
from reapx.moments import measure as measure_moments
from reapx.report.text import table
from reapx.selection.readers import readers_of
from reapx.selection.reap import reap_path

torch.manual_seed(0)


@dataclass
class Job:
    """A network, what it is calibrated on, what it is tested on."""

    build: Callable[[], nn.Module]
    calibration: Callable[[int], Tensor]
    test: Callable[[], dict[str, tuple[Tensor, Tensor]]]
    budget: float
    batch: int = 64


def _cifar_test() -> dict[str, tuple[Tensor, Tensor]]:
    return {"test": models.cifar10("test")}


def _imagenet_test() -> dict[str, tuple[Tensor, Tensor]]:
    images, labels = models.imagenet_sample()
    return {"all 1000": (images, labels), "500 not calibrated on": (images[1::2], labels[1::2])}


def _imagenet_calibration(count: int) -> Tensor:
    return models.imagenet_sample()[0][0::2][:count].clone()


def _cifar_calibration(count: int) -> Tensor:
    return models.cifar10("train_1", count)[0]


JOBS = {
    f"resnet{depth}": Job(lambda depth=depth: models.cifar_resnet(depth), _cifar_calibration, _cifar_test, 0.5)
    for depth in (20, 32, 56)
}
JOBS["squeezenet"] = Job(models.squeezenet, _imagenet_calibration, _imagenet_test, 0.7, batch=8)


def measure(name: str, allocation: str, count: int, test_count: int | None, rounds: int) -> dict[str, object]:
    """One row."""
    job = JOBS[name]
    model, images = job.build(), job.calibration(count)
    with PeakMemory() as memory:
        start = time.perf_counter()
        plan = reapx.plan(model, images, budget=reapx.MACs(job.budget), allocation=allocation)
        planned = time.perf_counter()
        result = plan.apply()
        applied = time.perf_counter()
    row: dict[str, object] = {
        "work": "halve",
        "case": f"{name} x{job.budget}",
        "allocation": allocation,
        "images": len(images),
        "plan_seconds": round(planned - start, 2),
        "apply_seconds": round(applied - planned, 2),
        "seconds": round(applied - start, 2),
        "peak_mb": round(memory.bytes / 2**20),
        "macs": plan.macs,
        "params": plan.params,
        "gap": result.gap,
    }
    for part, (tests, labels) in job.test().items():
        before = models.accuracy(model, tests[:test_count], labels[:test_count])
        after = models.accuracy(result.model, tests[:test_count], labels[:test_count])
        row[f"accuracy {part}"] = (before, after)
    batch = images[: job.batch]
    with torch.no_grad():
        times = interleaved([lambda: model(batch), lambda: result.model(batch)], rounds)
    row["batch_ms"] = tuple(round(1e3 * seconds, 2) for seconds in times)
    row["batch"] = len(batch)
    return row


VARIANTS: dict[str, dict[str, object]] = {
    "only removed": {"reconstruct": False},
    "consumers refitted": {"refit": "consumers"},
    "plain least squares": {"rectify": 0},
    "magnitude, refitted": {"selection": "magnitude"},
    "magnitude, only removed": {"selection": "magnitude", "reconstruct": False},
}


def variants(name: str) -> dict[str, object]:
    """Accuracy on the test images with one choice of the main job changed."""
    job = JOBS[name]
    model, images, (tests, labels) = job.build(), job.calibration(1000), job.test()["test"]
    row: dict[str, object] = {"work": "variants", "case": f"{name} x{job.budget}"}
    for variant, options in VARIANTS.items():
        result = reapx.prune(model, images, budget=reapx.MACs(job.budget), **options)  # type: ignore[arg-type]
        row[variant] = models.accuracy(result.model, tests, labels)
    return row


def naive_check(name: str, images: int) -> dict[str, object]:
    """REAP's path of one ResNet-20 group against deleting each candidate and refitting, step by step in float64."""
    found = reapx.inspect(models.cifar_resnet(20), _cifar_calibration(images))
    group = next(group for group in found.groups if group.name == name)
    moments = measure_moments(
        found._graph, found._images, [group.consumers[0].layer], found._graph.tensors, progress=False
    )
    (reader,) = readers_of(found._graph, group, moments)
    assert reader.moments is not None
    gram, damping, steps = reader.moments.gram, 1e-8, group.size - 1
    start = time.perf_counter()
    path = reap_path(name, [reader], steps, damping)
    seconds = time.perf_counter() - start
    damped = gram + reader.moments.ridge(damping) * torch.eye(len(gram), dtype=gram.dtype)
    signal = float(((reader.weight @ gram) * reader.weight).sum())
    start = time.perf_counter()
    tables, order, _ = reference.eliminate_naive([damped], [reader.weight], [reader.columns], [1 / signal], steps, [])
    naive_seconds = time.perf_counter() - start
    totals = torch.tensor([table[unit] for table, unit in zip(tables, order, strict=True)], dtype=torch.float64)
    return {
        "work": "path against naive loop",
        "case": f"resnet20 {name}, {group.size} channels, {len(gram)} features",
        "same order": path.order.tolist() == order,
        "largest error difference": float((path.errors.cumsum(0) - totals).abs().max()),
        "seconds": round(seconds, 4),
        "naive_seconds": round(naive_seconds, 2),
    }


def growth(count: int) -> dict[str, object]:
    """Seconds and peak memory of ResNet-20 on so many images: time may grow, memory beside the images may not."""
    model, images = models.cifar_resnet(20), _cifar_calibration(count)
    with PeakMemory() as memory:
        start = time.perf_counter()
        reapx.prune(model, images, budget=reapx.MACs(0.5))
        seconds = time.perf_counter() - start
    peak = round(memory.bytes / 2**20)
    return {"work": "growth", "case": "resnet20 x0.5", "images": count, "seconds": round(seconds, 2), "peak_mb": peak}


def alone(function: Callable[..., dict[str, object]], *arguments: object) -> dict[str, object]:
    """The row of a function called in a process of its own, so that peaks of memory do not mix."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        row = pool.submit(function, *arguments).result()
    print(row, flush=True)
    return row


def show(rows: list[dict[str, object]]) -> str:
    """The rows as a table."""
    lines = []
    for row in rows:
        for key, value in row.items():
            if not key.startswith("accuracy"):
                continue
            before, after = value  # type: ignore[misc]
            macs, milliseconds = row["macs"], row["batch_ms"]
            lines.append([
                str(row["case"]), str(row["allocation"]), key.removeprefix("accuracy "),
                f"{100 * before:.2f}", f"{100 * after:.2f}",
                f"{macs[1] / macs[0]:.3f}", f"{row['seconds']}", f"{row['peak_mb']}",  # type: ignore[index]
                f"{milliseconds[0]} -> {milliseconds[1]}",  # type: ignore[index]
            ])  # fmt: skip
    header = ["network", "allocation", "images", "top-1 before", "after", "MACs", "seconds", "peak MB", "ms/batch"]
    return table(lines, header)


def main() -> None:
    """Run the jobs."""
    arguments = parser(__doc__, "one small job, few images")
    arguments.add_argument("--jobs", action="store_true", help="no variants, no growth")
    arguments.add_argument("--only", nargs="*", default=list(JOBS), choices=list(JOBS))
    options = arguments.parse_args()
    if not models.has_data():
        return
    names = ["resnet20"] if options.quick else options.only
    rows = []
    for name in names:
        count = 100 if options.quick else 500 if name == "squeezenet" else 1000
        for allocation in ("pro",) if options.quick else ("pro", "uniform"):
            rows.append(
                alone(measure, name, allocation, count, 200 if options.quick else None, 2 if options.quick else 9)
            )
    if not options.quick and not options.jobs:
        rows += [alone(growth, number) for number in (1000, 2000, 4000, 8000)]
        rows += [alone(variants, name) for name in ("resnet20", "resnet56") if name in names]
        rows.append(alone(naive_check, "layer2.1.conv1", 1000))
    print(show(rows))
    if not options.quick or options.json:
        write("halve", rows, options.json)


if __name__ == "__main__":
    main()
