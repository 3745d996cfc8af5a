"""The main job on real networks: prune to a budget without labels or retraining, and measure everything.

    python benchmarks/halve.py [--quick] [--device cpu|cuda] [--json FILE] [--only NAME ...]

Rows: accuracy on the test images before and after, MACs, parameters, seconds of plan and apply, peak memory beside
model and images, milliseconds per batch before and after, and the proof (pruned against masked).
Calibration images are training images without labels; for SqueezeNet, of which only 1000 images are at
hand, they are the first half of those and accuracy is counted on the other half as well as on all. On a GPU each job
runs twice in its process: "first" has what CUDA loads and tunes on first use in it, the other figures have not.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import models
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import reference
from tables import table
from timing import Target, interleaved, parser, peak_memory, write
from torch import Tensor, nn

import reapx

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


@dataclass
class Halved:
    """A job that was done, and the seconds of its two steps."""

    plan: reapx.Plan
    result: reapx.Result
    seconds: tuple[float, float]

    @classmethod
    def of(cls, model: nn.Module, images: Tensor, target: Target, budget: float, **options: str) -> Halved:
        """Plan and apply."""
        start = target.now()
        plan = reapx.plan(model, images, budget=reapx.MACs(budget), **options)
        planned = target.now()
        result = plan.apply()
        return cls(plan, result, (planned - start, target.now() - planned))


def measure(
    name: str, allocation: str, count: int, test_count: int | None, rounds: int, device: str = "cpu"
) -> dict[str, object]:
    """One row."""
    job, target = JOBS[name], Target.of(device)
    model, images = job.build().to(target.device), job.calibration(count).to(target.device)
    first = Halved.of(model, images, target, job.budget, allocation=allocation) if target.cuda else None
    with peak_memory(target) as memory:
        done = Halved.of(model, images, target, job.budget, allocation=allocation)
    plan, result = done.plan, done.result
    row: dict[str, object] = {
        "work": "halve",
        "case": f"{name} x{job.budget}",
        "allocation": allocation,
        "images": len(images),
        "plan_seconds": round(done.seconds[0], 2),
        "apply_seconds": round(done.seconds[1], 2),
        "seconds": round(sum(done.seconds), 2),
        **({"device": target.name, "first_seconds": round(sum(first.seconds), 2)} if first else {}),
        "peak_mb": round(memory.bytes / 2**20),
        "macs": plan.macs,
        "params": plan.params,
        "gap": result.gap,
    }
    for part, counted in job.test().items():
        tests, labels = (tensor[:test_count].to(target.device) for tensor in counted)
        before, after = (models.accuracy(network, tests, labels) for network in (model, result.model))
        row[f"accuracy {part}"] = (before, after)
    batch = images[: job.batch]
    with torch.no_grad():
        times = interleaved([lambda: model(batch), lambda: result.model(batch)], rounds, target)
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


def variants(name: str, device: str = "cpu") -> dict[str, object]:
    """Accuracy on the test images with one choice of the main job changed."""
    job, place = JOBS[name], Target.of(device).device
    model, images = job.build().to(place), job.calibration(1000).to(place)
    tests, labels = (tensor.to(place) for tensor in job.test()["test"])
    row: dict[str, object] = {"work": "variants", "case": f"{name} x{job.budget}"}
    for variant, options in VARIANTS.items():
        result = reapx.prune(model, images, budget=reapx.MACs(job.budget), **options)  # type: ignore[arg-type]
        row[variant] = models.accuracy(result.model, tests, labels)
    return row


def naive_check(name: str, images: int, device: str = "cpu") -> dict[str, object]:
    """REAP's path of one ResNet-20 group against deleting each candidate and refitting, step by step in float64."""
    target = Target.of(device)
    found = reapx.inspect(models.cifar_resnet(20).to(target.device), _cifar_calibration(images).to(target.device))
    group = next(group for group in found.groups if group.name == name)
    moments = reapx.measure(found, [group], progress=False)
    (measured,) = reapx.measured_consumers(found, group, moments)
    gram, damping, steps = measured.known_moments.gram, 1e-8, group.size - 1
    start = target.now()
    path = reapx.find_path(found, group, moments, damping=damping, steps=steps)
    seconds = target.now() - start
    gram, weight, columns = gram.cpu(), measured.weight.cpu(), measured.columns.cpu()
    damped = gram + measured.known_moments.ridge(damping) * torch.eye(len(gram), dtype=gram.dtype)
    signal = float(((weight @ gram) * weight).sum())
    start = target.now()
    tables, order, _ = reference.eliminate_naive([damped], [weight], [columns], [1 / signal], steps, [])
    naive_seconds = target.now() - start
    totals = torch.tensor([table[unit] for table, unit in zip(tables, order, strict=True)], dtype=torch.float64)
    return {
        "work": "path against naive loop",
        "case": f"resnet20 {name}, {group.size} channels, {len(gram)} features",
        "same order": path.order.tolist() == order,
        "largest error difference": float((path.errors.cumsum(0) - totals).abs().max()),
        "seconds": round(seconds, 4),
        "naive_seconds": round(naive_seconds, 2),
    }


def growth(count: int, device: str = "cpu") -> dict[str, object]:
    """Seconds and peak memory of ResNet-20 on so many images: time may grow, memory beside the images may not."""
    target = Target.of(device)
    model, images = models.cifar_resnet(20).to(target.device), _cifar_calibration(count).to(target.device)
    with peak_memory(target) as memory:
        start = target.now()
        reapx.prune(model, images, budget=reapx.MACs(0.5))
        seconds = target.now() - start
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
            tests, rounds = (200, 2) if options.quick else (None, 9)
            rows.append(alone(measure, name, allocation, count, tests, rounds, options.device))
    if not options.quick and not options.jobs:
        rows += [alone(growth, number, options.device) for number in (1000, 2000, 4000, 8000)]
        rows += [alone(variants, name, options.device) for name in ("resnet20", "resnet56") if name in names]
        rows.append(alone(naive_check, "layer2.1.conv1", 1000, options.device))
    print(show(rows))
    if not options.quick or options.json:
        write("halve", rows, options.json, Target.of(options.device))


if __name__ == "__main__":
    main()
