"""Methods of selection side by side, as in section 4 of the first report: same layers, same widths, no retraining.

    python benchmarks/reproduce/selections.py [--quick] [--device cpu|cuda] [--only JOB ...] [--json FILE]

Accuracy is counted on all test images, without reconstruction (NU folds and ThiNet scales by themselves, the others
only remove) and with the default one; 1000 training images without labels calibrate. DPP is random: its rows are one
sample, the same on every run. Layer errors are those of ``layer_errors.py``, on the calibration images: where these
give fewer rows than a layer has features, which the plan warns of, fits look better than they are.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import models
from layer_errors import ERRORS, compare, means, orders
from tables import table
from timing import Target, parser, write
from torch import Tensor, nn

import reapx

SEEDS = [
    ("VGG16's fully connected layer to 1/2 (89.5)", "NU 87.9, DPP 85.6"),
    ("VGG16's fully connected layer to 1/3 (89.5)", "NU 86.4, DPP 76.3"),
    ("VGG16, convolutions x1/2 (89.5)", "NU 84.5, ThiNet 24.5, OP 2.4"),
    ("VGG16, convolutions x1/3 (89.5)", "NU 72.9, ThiNet 2.2, OP 0.6"),
    ("VGG16, Table 1, x1/2, difference", "REAP -2.0, CP -2.7, NU -5.0, ThiNet -65.0"),
    ("VGG16, Table 1, x1/5, difference", "REAP -9.4, CP -22.0, ThiNet -88.8"),
]
"""Top-5 accuracy on ImageNet before retraining, in the first report."""
FACTS = (
    "reap best",
    "reap <= lasso",
    "lasso <= thinet",
    "reap <= lasso <= thinet",
    "in the mean",
    "as published",
    "as published, in the mean",
    "nu fitted <= own",
    "nu own = sum",
    "few_rows",
    "measure_seconds",
)
WITH_PRO = ("reap", "nu", "lasso", "thinet", "magnitude")


@dataclass(frozen=True)
class Network:
    """A network and its images."""

    build: Callable[[], nn.Module]
    images: Callable[[int], Tensor]
    test: Callable[[int | None], tuple[Tensor, Tensor]]


def _cifar(build: Callable[[], nn.Module], norm: tuple[tuple[float, ...], ...]) -> Network:
    return Network(
        build,
        lambda count: models.cifar10("train_1", count, norm)[0],
        lambda count: models.cifar10("test", count, norm),
    )


NETWORKS = {
    "mnist": Network(
        models.mnist_cnn, lambda count: models.mnist("train", count)[0], lambda count: models.mnist("test", count)
    ),
    "vgg16bn": _cifar(models.cifar_vgg16bn, models.VGG_NORM),
    "resnet56": _cifar(lambda: models.cifar_resnet(56), models.RESNET_NORM),
    "resnet20": _cifar(lambda: models.cifar_resnet(20), models.RESNET_NORM),
}


@dataclass(frozen=True)
class Case:
    """One network at one budget.

    Attributes:
        label: The budget, in words.
        options: Of ``reapx.plan``.
        selections: Those whose accuracy is counted.
    """

    job: str
    network: str
    label: str
    options: dict[str, Any]
    selections: tuple[str, ...] = tuple(reapx.SELECTIONS)

    @property
    def pro(self) -> bool:
        """Whether PRO sets the widths, which then differ by method."""
        return self.options.get("allocation") != "uniform"


def _fully_connected(part: int) -> Case:
    stay = 256 // part
    options = {"budget": reapx.MACs(1.0), "bounds": {"fc_layers.0": (stay, stay)}, "exclude": ["conv_layers.*"]}
    return Case("mnist_fc", "mnist", f"1/{part}", {**options, "allocation": "uniform"})


def _uniform(network: str, label: str, share: float, selections: tuple[str, ...] = tuple(reapx.SELECTIONS)) -> Case:
    return Case(network, network, label, {"budget": reapx.MACs(share), "allocation": "uniform"}, selections)


CASES = [
    *(_fully_connected(part) for part in (2, 3, 8, 16)),
    _uniform("vgg16bn", "x1/2", 1 / 2),
    _uniform("vgg16bn", "x1/5", 1 / 5),
    _uniform("resnet56", "x0.5", 0.5),
    _uniform("resnet56", "x0.35", 0.35),
    Case("pro_resnet56", "resnet56", "x0.35", {"budget": reapx.MACs(0.35)}, WITH_PRO),
    Case("pro_vgg16bn", "vgg16bn", "x1/5", {"budget": reapx.MACs(1 / 5)}, WITH_PRO),
]
QUICK = [_fully_connected(2), _uniform("resnet20", "x0.5", 0.5, ("reap", "nu"))]


Loaded = tuple[nn.Module, Tensor, tuple[Tensor, Tensor]]


def load(network: Network, count: int, test_count: int | None, target: Target) -> Loaded:
    """A network, its calibration images, its test images and their labels."""
    tests, labels = network.test(test_count)
    place = target.device
    return network.build().to(place), network.images(count).to(place), (tests.to(place), labels.to(place))


def measure(case: Case, selection: str, loaded: Loaded, target: Target) -> Any:
    """One row, and the plan."""
    model, images, test = loaded
    start = target.now()
    plan = reapx.plan(model, images, selection=selection, **case.options)
    seconds = target.now() - start
    row: dict[str, Any] = {
        "work": "selection",
        "job": case.job,
        "network": case.network,
        "budget": case.label,
        "allocation": plan.settings.allocation,
        "selection": selection,
        "images": len(images),
        "test_images": len(test[0]),
        "macs": plan.macs,
        "plan_seconds": round(seconds, 2),
        "widths": [entry.kept for entry in plan.groups],
    }
    for name, reconstruct in (("without", False), ("with", True)):
        if reconstruct or not case.pro:
            start = target.now()
            result = plan.apply(reconstruct=reconstruct)
            row["apply_seconds"] = round(target.now() - start, 2)
            row[name] = models.accuracy(result.model, *test)
            row[f"{name}_change"] = result.change
    return row, plan


def run(case: Case, loaded: Loaded, target: Target) -> list[dict[str, Any]]:
    """A row for each method, then what holds between their errors."""
    before = models.accuracy(loaded[0], *loaded[2])
    rows = []
    for selection in case.selections:
        row, plan = measure(case, selection, loaded, target)
        rows.append({**row, "before": before})
        _say(rows[-1])
    if case.pro:
        return rows
    if any(row["widths"] != rows[0]["widths"] for row in rows):
        raise AssertionError(f"{case.job} {case.label}: methods were compared at different widths")
    errors = compare(plan, target)
    mean = means(errors["groups"])
    for row in rows:
        row["select_seconds"] = round(errors["select_seconds"][row["selection"]], 4)
        row["errors"] = mean[row["selection"]]
    shared: dict[str, Any] = {
        "work": "layer errors",
        "job": case.job,
        "budget": case.label,
        "measure_seconds": round(errors["measure_seconds"], 2),
        "few_rows": errors["few_rows"],
        **orders(errors["groups"]),
        "each": errors["groups"],
    }
    _say(shared)
    return [*rows, shared]


def _say(row: dict[str, Any]) -> None:
    print({key: value for key, value in row.items() if key not in ("each", "widths")}, flush=True)


def show(rows: list[dict[str, Any]]) -> str:
    """The rows as tables."""
    chosen = [row for row in rows if row["work"] == "selection"]
    lines = [
        [
            f"{row['job']} {row['budget']}",
            row["selection"],
            f"{100 * row['before']:.2f}",
            *(f"{100 * row[name]:.2f}" if name in row else "" for name in ("without", "with")),
            *(str(row.get(f"{name}_seconds", "")) for name in ("plan", "select", "apply")),
            *(f"{100 * errors[kind]:.3g} %" if kind in errors else "" for kind in ERRORS),
        ]
        for row in chosen
        for errors in [row.get("errors", {})]
    ]
    header = ["case", "selection", "top-1 before", "without", "with", "plan s", "choose s", "apply s", *ERRORS]
    parts = [table(SEEDS, ["first report, ImageNet top-5 before retraining", ""]), table(lines, header)]
    for row in rows:
        if row["work"] == "layer errors":
            facts = [[key, _fact(row[key], row["groups"])] for key in FACTS]
            parts.append(table(facts, [f"{row['job']} {row['budget']}", "holds"]))
    return "\n\n".join(parts)


def _fact(value: Any, groups: int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return f"{len(value)} of {groups}"
    return f"{value:.2f}" if isinstance(value, float) else f"{value} of {groups}"


def _warm_up(case: Case, model: nn.Module, images: Tensor) -> None:
    """What the first plan of a process pays for, so that no method does."""
    reapx.plan(model, images[:20], selection="lasso", **case.options)


def main() -> None:
    """All jobs."""
    arguments = parser(__doc__, "two small cases, few images")
    jobs = list(dict.fromkeys(case.job for case in CASES))
    arguments.add_argument("--only", nargs="*", default=jobs, choices=jobs, metavar="JOB", help=f"of {', '.join(jobs)}")
    options = arguments.parse_args()
    if not models.has_data():
        return
    warnings.simplefilter("ignore", reapx.CalibrationWarning)  # the rows say where
    rows: list[dict[str, Any]] = []
    target = Target.of(options.device)
    loaded: dict[str, Loaded] = {}
    for case in QUICK if options.quick else [case for case in CASES if case.job in options.only]:
        if case.network not in loaded:
            counts = (100, 200) if options.quick else (1000, None)
            loaded = {case.network: load(NETWORKS[case.network], *counts, target)}
            _warm_up(case, *loaded[case.network][:2])
        start = target.now()
        rows += run(case, loaded[case.network], target)
        print(f"{case.job} {case.network} {case.label}: {target.now() - start:.0f} s", flush=True)
    print(show(rows))
    if not options.quick or options.json:
        write("selections", rows, options.json, target)


if __name__ == "__main__":
    main()
