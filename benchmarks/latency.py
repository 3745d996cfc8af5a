"""Latency budgets: what is asked, and what the pruned network takes beside the original in fresh processes.

    python benchmarks/latency.py [--quick] [--only NAME ...] [--runtime NAME ...] [--batch NUMBER ...] [--json FILE]

Rows: the share of the original's milliseconds that was asked for, the share that planning measured, those that three
fresh processes measured, accuracy, and the seconds of planning beside those of a plan for half of the MACs. Networks
and images are those of ``heldout.py``. ``--runtime onnxruntime`` needs the packages onnx and onnxruntime. A row that is
in the file already is not measured again.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import heldout
import models
import torch
from tables import table
from timing import HOST, RESULTS, known_rows, parser, write
from torch import nn

import reapx
from reapx.calibration.images import Images
from reapx.costs.latency import measure_milliseconds

SHARES = (0.8, 0.6)
REPEATS = 3
NETWORKS = ("resnet20", "resnet56", "squeezenet", "efficientnet-lite0")


def measure(name: str, runtime: str, batch: int, count: int | None, repeats: int) -> Iterator[dict[str, object]]:
    """One row for each share of the milliseconds, from one plan."""
    job = heldout.JOBS[name]
    images, (tests, labels) = job.images()
    images, tests, labels = images[:count], tests[:count], labels[:count]
    model = job.build()
    plan = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", reapx.CalibrationWarning)
        macs_seconds = reapx.plan(model, images, budget=reapx.MACs(0.5), **job.options).seconds
        for share in SHARES:
            budget = reapx.Latency(share, batch=batch, runtime=runtime)
            row: dict[str, object] = {
                "work": "latency",
                "case": name,
                "runtime": runtime,
                "batch": batch,
                "share": share,
            }
            try:
                plan = reapx.plan(model, images, budget=budget, **job.options) if plan is None else plan.at(budget)
            except reapx.BudgetError as error:
                yield {**row, "refused": str(error)}
                continue
            result = plan.apply()
            before, planned = plan.latency or (float("nan"), float("nan"))
            yield {
                **row,
                "planned": round(planned / before, 4),
                "fresh": [round(own, 4) for own in fresh(model, result.model, images[:batch], runtime, repeats)],
                "milliseconds": round(before, 4),
                "macs": round(plan.macs[1] / plan.macs[0], 4),
                "widths": [entry.kept * entry.group.per_unit for entry in plan.groups],
                "accuracy": [round(models.accuracy(own, tests, labels), 4) for own in (model, result.model)],
                "plan_seconds": round(plan.seconds, 1),
                "macs_plan_seconds": round(macs_seconds, 1),
                "images": len(images),
            }


def fresh(model: nn.Module, pruned: nn.Module, images: torch.Tensor, runtime: str, repeats: int) -> list[float]:
    """The pruned network's share of the original's milliseconds, measured by new processes one after another."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "networks.pt"
        torch.save((model, pruned, images), file)
        words = [sys.executable, __file__, "--time", str(file), "--runtime", runtime]
        return [float(subprocess.run(words, check=True, capture_output=True, text=True).stdout) for _ in range(repeats)]


def time_file(file: Path, runtime: str) -> float:
    """What a fresh process does."""
    model, pruned, inputs = torch.load(file, weights_only=False)
    images = Images([inputs], torch.device("cpu"), 2**30)
    latency = reapx.Latency(1.0, batch=len(inputs), runtime=runtime)
    before, after = measure_milliseconds([model, pruned], images, latency)
    return after / before


def show(rows: list[dict[str, object]]) -> str:
    """The rows as a table."""
    keys = ["case", "runtime", "batch", "share", "planned", "fresh", "macs", "accuracy", "plan_seconds"]
    keys.append("macs_plan_seconds")
    return table([[str(row.get(key, "refused")) for key in keys] for row in rows], keys)


def _key(row: dict[str, object]) -> tuple[object, ...]:
    return row["case"], row["runtime"], row["batch"], row["share"]


def main() -> None:
    """Run the jobs."""
    arguments = parser(__doc__, "ResNet-20 in eager mode, few images, one fresh process")
    arguments.add_argument("--only", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    arguments.add_argument("--runtime", nargs="*", default=["eager", "onnxruntime"])
    arguments.add_argument("--batch", nargs="*", type=int, default=[1, 16])
    arguments.add_argument("--time", type=Path, help="print the share that the networks in this file take, and end")
    options = arguments.parse_args()
    if options.time is not None:
        print(time_file(options.time, options.runtime[0]))
        return
    if not models.has_data():
        return
    if options.quick:
        print(show(list(measure("resnet20", "eager", 16, 200, 1))))
        return
    path = options.json or RESULTS / "latency.json"
    rows = known_rows(path)
    for name in options.only:
        if name == "efficientnet-lite0" and not models.has_efficientnet():
            continue
        for runtime in options.runtime:
            for batch in options.batch:
                if {(name, runtime, batch, share) for share in SHARES} <= {_key(row) for row in rows}:
                    continue
                for row in measure(name, runtime, batch, None, REPEATS):
                    rows = [*(old for old in rows if _key(old) != _key(row)), row]
                    write("latency", rows, path, HOST)
                    print(show([row]), flush=True)
    print(show(rows))


if __name__ == "__main__":
    main()
