"""The comparison: one network pruned to several budgets by methods that each add one step to the one before."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..costs.budget import MACs
from ..errors import CheckpointError
from ..inspection.argument_checks import Allocation
from ..planning.apply import Result
from ..planning.calls import plan
from ..planning.plan import Plan
from ..report import page as html
from ..report import plots
from ..selection.methods import Selection
from ..surgery.storage import load
from ..text import share, short
from ..text import table as text_table
from .digits import BATCH, DigitNet, Digits, read_digits, train

BUDGETS = (0.25, 0.12, 0.06)
"""Shares of the MACs that stay."""

FIXED = 1e-2
"""Damping of the steps that do not choose it."""


@dataclass(frozen=True)
class Step:
    """A way to prune; each adds one thing to the step before it.

    Attributes:
        name: What it adds.
        selection, allocation, damping: Arguments of ``reapx.plan``; a damping of None is chosen by held-out error.
        reconstruct: Whether what is left is refitted.
    """

    name: str
    selection: Selection = "magnitude"
    allocation: Allocation = "uniform"
    damping: float | None = FIXED
    reconstruct: bool = True


STEPS = (
    Step("smallest weights removed, nothing else", reconstruct=False),
    Step("+ what is left is refitted"),
    Step("+ PRO chooses the width of each layer", allocation="pro"),
    Step("+ REAP chooses the channels", "reap", "pro"),
    Step("+ damping by held-out error (the default)", "reap", "pro", None),
)
HEADER = ("network", "accuracy", "MACs", "parameters", f"ms per {BATCH} images", "seconds to prune")
READING = """Accuracy on {tested} images that no step has seen; one image is {image}. Lines that differ by a few images
change places with another seed. Times are on one thread."""
WHAT_NEXT = """{output}/report.html shows the comparison, the channels and the errors.
{output}/pruned holds the network of the last line at x{budget:g}; a fresh one that loaded it computed the same outputs.

What next:
  1. Your own network: reapx.prune(model.eval(), images, budget=reapx.MACs(0.5)).model
  2. Read it back:     reapx.load(fresh_model, "{output}/pruned").eval()
  3. Retrain it for a few epochs, as any other module, to win back more accuracy."""


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        step: Name of the step that made it, or "original".
        budget: Share of the MACs that it was pruned to.
        macs, params: MACs per image and parameters.
        accuracy: Share of correct answers on test images.
        milliseconds: Median of one batch.
        seconds: Of planning and applying; one plan with PRO serves all budgets and counts in each.
    """

    step: str
    budget: float
    macs: int
    params: int
    accuracy: float
    milliseconds: float
    seconds: float


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, so that results do not depend on the number of cores, and times little on other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def run_demo(
    output: Path = Path("reapx-demo"),
    *,
    seed: int = 0,
    images: int | None = None,
    epochs: int = 3,
    calibration: int = 96,
    rounds: int = 9,
    budgets: Sequence[float] = BUDGETS,
) -> None:
    """Train, prune by each of ``STEPS``, print the comparison, and write ``report.html`` and ``pruned/``.

    Args:
        output: Folder to write into; it is created if it does not exist.
        seed: Seed of the split, the initial weights and the order of training images.
        images: Number of digits, training and test together; all by default.
        epochs: Number of passes over the training images.
        calibration: Number of training images, without labels, for pruning.
        rounds: Number of timed runs of each network, interleaved.
        budgets: Shares of the MACs that stay, falling.

    Raises:
        ReapxError: a package that the demonstration needs is not installed; the message names the cure.
    """
    plots.require()
    digits = read_digits(seed, images)
    trained, tested = len(digits.train_images), len(digits.test_images)
    print(f"{digits.source}: {trained} to train, {tested} to test", flush=True)
    model = train(digits, epochs, seed)
    results = {
        (step.name, budget): result
        for step in STEPS
        for budget, result in prune(model, digits.train_images[:calibration], step, budgets)
    }
    rows = compare(model, results, digits, rounds)
    reading = READING.format(tested=tested, image=share(1 / tested))
    print(f"\n{text_table(*by_budget(rows, budgets))}\n\n{reading}\n")
    best = results[STEPS[-1].name, budgets[0]]
    save_and_reload(best, output / "pruned", digits.test_images[:BATCH])
    lead = (
        f"A small residual network, trained for {epochs} epochs on {trained} {digits.source} and pruned with "
        f"{min(calibration, trained)} of them, without labels and without retraining. {reading}"
    )
    html.write_page(comparison_page(rows, budgets, best, lead), output / "report.html")
    print(WHAT_NEXT.format(output=output, budget=budgets[0]))


def prune(model: nn.Module, images: Tensor, step: Step, budgets: Sequence[float]) -> Iterator[tuple[float, Result]]:
    """The network pruned to each budget by one step, with the budget."""
    start = time.perf_counter()
    planned: Plan | None = None
    for budget in budgets:
        if planned is None or step.allocation != "pro":
            planned = plan(
                model,
                images,
                budget=MACs(budget),
                selection=step.selection,
                allocation=step.allocation,
                damping=step.damping,
            )
        else:
            planned = planned.at(MACs(budget))
        yield budget, planned.apply(reconstruct=step.reconstruct)
    print(f"{step.name}: {time.perf_counter() - start:.1f} s", flush=True)


def compare(model: nn.Module, results: dict[tuple[str, float], Result], digits: Digits, rounds: int) -> list[Row]:
    """Accuracy, costs and time of the original and of each result, in this order."""
    networks = [model, *(result.model for result in results.values())]
    times = batch_times(networks, digits.test_images[:BATCH], rounds)
    accuracies = [accuracy(network, digits.test_images, digits.test_labels) for network in networks]
    first = next(iter(results.values())).plan
    rows = [Row("original", 1.0, first.macs[0], first.params[0], accuracies[0], times[0], 0.0)]
    for ((step, budget), result), right, milliseconds in zip(results.items(), accuracies[1:], times[1:], strict=True):
        seconds = result.plan.seconds + result.seconds
        rows.append(Row(step, budget, result.plan.macs[1], result.plan.params[1], right, milliseconds, seconds))
    return rows


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest output is the label."""
    outputs = torch.cat([model(batch) for batch in torch.split(images, BATCH)])
    return (outputs.argmax(1) == labels).double().mean().item()


@torch.no_grad()
def batch_times(networks: Sequence[nn.Module], images: Tensor, rounds: int) -> list[float]:
    """Median milliseconds of one batch for each network; they take turns in random order."""
    times: list[list[float]] = [[] for _ in networks]
    for turn in range(rounds + 1):
        for place in np.random.default_rng(turn).permutation(len(networks)).tolist():
            start = time.perf_counter()
            networks[place](images)
            if turn:  # the first run warms up
                times[place].append(1e3 * (time.perf_counter() - start))
    return [statistics.median(found) for found in times]


@torch.no_grad()
def save_and_reload(result: Result, folder: Path, images: Tensor) -> None:
    """Save a result; CheckpointError if a fresh network that loads it computes anything else."""
    result.save(folder, overwrite=True)
    fresh = load(DigitNet(), folder).eval()
    if not torch.equal(fresh(images), result.model(images)):
        raise CheckpointError(f"{folder}: the reloaded network computes other outputs")


def by_budget(rows: Sequence[Row], budgets: Sequence[float]) -> tuple[list[list[str]], list[str]]:
    """Accuracies as text, a row for each step and a column for each budget, and the header."""
    original, *others = rows
    found = {(row.step, row.budget): share(row.accuracy) for row in others}
    lines = [[step.name, *(found[step.name, budget] for budget in budgets)] for step in STEPS]
    return lines, [f"accuracy (the original: {share(original.accuracy)})", *(f"MACs x{budget:g}" for budget in budgets)]


def comparison_page(rows: Sequence[Row], budgets: Sequence[float], result: Result, lead: str) -> str:
    """A page with the comparison as plot and tables, and the report on one result."""
    original, *others = rows
    lines = [
        (step.name, [(row.macs / original.macs, 100 * row.accuracy) for row in others if row.step == step.name])
        for step in STEPS
    ]
    drawing = plots.lines_figure(
        lines, "share of the MACs that stay", "accuracy (%)", level=("original", 100 * original.accuracy)
    )
    lines_of, header = by_budget(rows, budgets)
    comparison = html.section(
        "What each step gives",
        html.figure(
            drawing, "Accuracy on the test images over the MACs that stay; each line adds a step to the one before."
        ),
        html.table(header, lines_of),
        html.table(HEADER, cells(rows)),
    )
    rest = html.paragraph(f"The rest is about the network of the last step at x{budgets[0]:g} of the MACs.")
    return html.page("reapx demo: handwritten digits", [comparison, rest, *html.result_sections(result)], lead)


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The networks as text, under ``HEADER``."""
    return [
        [
            row.step if row.step == "original" else f"x{row.budget:g} {row.step}",
            share(row.accuracy),
            short(row.macs),
            short(row.params),
            f"{row.milliseconds:.1f}",
            f"{row.seconds:.1f}" if row.seconds else "",
        ]
        for row in rows
    ]
