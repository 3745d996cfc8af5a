"""Table V.2 of the first report again: ResNet-56 on CIFAR-10, widths by PRO, no retraining.

    python benchmarks/reproduce/pro_resnet56.py [--quick] [--device cpu|cuda] [--json FILE]

1000 training images without labels calibrate; accuracy is counted on all test images. Beside the table: where the time
goes; PRO's predicted error at the outputs against the error measured after ``apply`` for ten budgets of one plan,
with all refits and with those of the consumers only; and predicted against measured milliseconds. On a GPU the rows
of the first budget are measured warm, after a run of their own, and where the time goes in a third run.
"""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import models
from tables import table
from timing import Target, parser, peak_memory, write
from torch import Tensor, nn

import reapx

SEEDS = [
    ("seeds: PRO & REAP", "x0.500", "92.8 -> 90.6", "4237"),
    ("seeds: PRO & CP", "x0.498", "92.8 -> 90.0", "3800"),
    ("seeds: AMC & CP", "x0.501", "92.8 -> 79.0", "6885"),
    ("seeds: uniform & REAP", "x0.510", "92.8 -> 86.3", ""),
]
METHODS: dict[str, dict[str, Any]] = {
    "PRO & REAP": {},
    "PRO & REAP, plain least squares": {"rectify": 0},
    "PRO & magnitude": {"selection": "magnitude"},
    "uniform & REAP": {"allocation": "uniform"},
    "uniform & REAP, plain least squares": {"allocation": "uniform", "rectify": 0},
}
BUDGETS = (0.5, 0.35, 0.25)
AT_ALL_BUDGETS = ("PRO & REAP", "uniform & REAP")
CURVE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25)
LOG = logging.getLogger("reapx")


class Steps(logging.Handler):
    """Context that adds up the seconds of each step, as the log of reapx tells them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> Steps:
        LOG.addHandler(self)
        LOG.setLevel(logging.INFO)
        return self

    def emit(self, record: logging.LogRecord) -> None:
        """Add one step; of "measuring, 10 of 10 x batch", what is before the comma is its name."""
        if record.args:
            step, seconds = record.args
            name = str(step).split(",")[0]
            self.seconds[name] = self.seconds.get(name, 0.0) + float(seconds)

    def __exit__(self, *_: object) -> None:
        LOG.removeHandler(self)
        LOG.setLevel(logging.NOTSET)


@dataclass
class Pruned:
    """One way through ``plan`` and ``apply``, and the seconds of both."""

    plan: reapx.Plan
    result: reapx.Result
    seconds: tuple[float, float]

    @classmethod
    def by(cls, method: str, budget: float, model: nn.Module, images: Tensor, target: Target) -> Pruned:
        options = dict(METHODS[method])
        rectify = {"rectify": options.pop("rectify")} if "rectify" in options else {}
        start = target.now()
        plan = reapx.plan(model, images, budget=reapx.MACs(budget), **options)
        planned = target.now()
        result = plan.apply(**rectify)
        return cls(plan, result, (planned - start, target.now() - planned))


def measure(
    method: str, budget: float, images: Tensor, test: tuple[Tensor, Tensor], target: Target
) -> dict[str, object]:
    """One row of the table."""
    model = models.cifar_resnet(56).to(target.device)
    given = (method, budget, model, images, target)
    detailed = target.cuda and budget == BUDGETS[0]
    first = Pruned.by(*given) if detailed else None
    watched = Steps()
    with peak_memory(target) as memory, nullcontext() if target.cuda else watched:
        done = Pruned.by(*given)
    if detailed:
        with watched:
            Pruned.by(*given)
    split = {name: round(seconds, 2) for name, seconds in watched.seconds.items()}
    plan, result = done.plan, done.result
    row: dict[str, object] = {
        "work": "table V.2",
        "method": method,
        "budget": budget,
        "macs": plan.macs,
        "accuracy": (models.accuracy(model, *test), models.accuracy(result.model, *test)),
        "plan_seconds": round(done.seconds[0], 2),
        "apply_seconds": round(done.seconds[1], 2),
        "seconds": round(sum(done.seconds), 2),
        **({"device": target.name, "first_seconds": round(sum(first.seconds), 2)} if first else {}),
        "peak_mb": round(memory.bytes / 2**20),
        **({"split": split} if split else {}),
        "widths": [entry.kept for entry in plan.groups],
        "gap": result.gap,
    }
    print(row, flush=True)
    return row


def curve(
    images: Tensor, test: tuple[Tensor, Tensor], budgets: tuple[float, ...], target: Target
) -> list[dict[str, object]]:
    """Predicted against measured error, for many budgets of one plan."""
    model = models.cifar_resnet(56).to(target.device)
    wanted = models.outputs_of(model, images)
    plan = reapx.plan(model, images, budget=reapx.MACs(budgets[0]))
    rows: list[dict[str, object]] = []
    for budget in budgets:
        start = target.now()
        own = plan.at(reapx.MACs(budget))
        planned = target.now() - start
        results = {"swept": own.apply(), "consumers only": own.apply(refit="consumers", rectify=0)}
        measured = {
            name: models.output_error(models.outputs_of(result.model, images), wanted)
            for name, result in results.items()
        }
        rows.append(
            {
                "work": "predicted error",
                "budget": budget,
                "predicted": own.output_error,
                **measured,
                "accuracy": models.accuracy(results["swept"].model, *test),
                "plan_at_seconds": round(planned, 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


def latencies(
    images: Tensor, test: tuple[Tensor, Tensor], budgets: tuple[float, ...], target: Target
) -> list[dict[str, object]]:
    """Milliseconds of a batch of 64, predicted from layer times against measured, for several budgets of one plan."""
    model = models.cifar_resnet(56).to(target.device)
    plan = reapx.plan(model, images, budget=reapx.Latency(budgets[0], batch=64))
    rows: list[dict[str, object]] = []
    for budget in budgets:
        result = plan.at(reapx.Latency(budget, batch=64)).apply()
        assert result.latency is not None
        before, predicted, after = (round(each, 2) for each in result.latency)
        share = result.plan.macs[1] / result.plan.macs[0]
        accuracy = models.accuracy(result.model, *test)
        rows.append({"work": "latency", "budget": budget, "before": before, "predicted": predicted, "after": after,
                     "macs": round(share, 3), "accuracy": accuracy})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """The rows as tables."""
    lines = [[name, macs, accuracy, seconds] for name, macs, accuracy, seconds in SEEDS]
    for row in rows:
        if row["work"] == "table V.2":
            before, after = row["accuracy"]
            share = f"x{row['macs'][1] / row['macs'][0]:.3f}"
            lines.append([row["method"], share, f"{100 * before:.2f} -> {100 * after:.2f}", str(row["seconds"])])
    parts = [table(lines, ["method", "MACs", "top-1 without retraining", "seconds"])]
    errors = [
        [
            f"x{row['budget']}",
            *(f"{100 * row[key]:.2f} %" for key in ("predicted", "consumers only", "swept", "accuracy")),
        ]
        for row in rows
        if row["work"] == "predicted error"
    ]
    parts.append(table(errors, ["MACs", "predicted error", "measured, consumers", "measured, swept", "top-1"]))
    keys = ("budget", "before", "predicted", "after", "macs", "accuracy")
    times = [[str(row[key]) for key in keys] for row in rows if row["work"] == "latency"]
    parts.append(table(times, ["latency", "ms before", "predicted", "measured", "MACs", "top-1"]))
    return "\n\n".join(parts)


def main() -> None:
    """The table, then the curves."""
    arguments = parser(__doc__, "one row, few images")
    options = arguments.parse_args()
    if not models.has_data():
        return
    target = Target.of(options.device)
    images = models.cifar10("train_1", 100 if options.quick else 1000)[0].to(target.device)
    tests, labels = models.cifar10("test", 200 if options.quick else None)
    test = (tests.to(target.device), labels.to(target.device))
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        for budget in BUDGETS:
            if options.quick and (method, budget) != ("PRO & REAP", BUDGETS[0]):
                continue
            if budget == BUDGETS[0] or method in AT_ALL_BUDGETS:
                rows.append(measure(method, budget, images, test, target))
    rows += curve(images, test, CURVE[:1] if options.quick else CURVE, target)
    rows += latencies(images, test, (0.7,) if options.quick else (0.8, 0.6, 0.5), target)
    print(show(rows))
    if not options.quick or options.json:
        write("pro_resnet56", rows, options.json, target)


if __name__ == "__main__":
    main()
