"""A demonstration: train a digit classifier, halve its MACs, compare, save, report.

The images are handwritten digits that come with a Python package, so nothing is downloaded.
"""

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
from ..planning.calls import plan
from ..planning.plan import Result
from ..report import page as html
from ..report import plots
from ..selection.methods import Selection
from ..surgery.storage import load
from ..text import share, short
from ..text import table as text_table
from .digits import BATCH, DigitNet, Digits, read_digits, train

REAP = "REAP, PRO, reconstructed"
VARIANTS: tuple[tuple[str, Selection, Allocation, bool], ...] = (
    (REAP, "reap", "pro", True),
    ("REAP, uniform, reconstructed", "reap", "uniform", True),
    ("magnitude, uniform, reconstructed", "magnitude", "uniform", True),
    ("magnitude, uniform, only removed", "magnitude", "uniform", False),
)
"""(name, selection, allocation, whether to refit) of each pruned network; each row changes one setting."""

BUDGET = 0.5
HEADER = ("network", "accuracy", "MACs", "parameters", f"ms per {BATCH} images", "seconds to prune")
READING = """One test image is {image}: the refitted rows differ by a few images, in another order with another
seed; what refitting wins back stays. Times are on one thread."""
WHAT_NEXT = """{output}/report.html shows the comparison, the channels and the errors.
{output}/pruned holds the REAP network; a fresh one that loaded it computed the same outputs.

What next:
  1. Your own network: reapx.prune(model.eval(), images, budget=reapx.MACs(0.5)).model
  2. Read it back:     reapx.load(fresh_model, "{output}/pruned").eval()
  3. Retrain it for a few epochs, as any other module, to win back more accuracy."""


@dataclass(frozen=True)
class Row:
    """One network: MACs per image, share of correct answers, median ms per batch, seconds of plan and apply."""

    name: str
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
    calibration: int = 1000,
    rounds: int = 15,
) -> None:
    """Train, prune in each way of ``VARIANTS``, print the comparison, and write ``report.html`` and ``pruned/``.

    Args:
        output: Folder to write into; it is created if it does not exist.
        seed: Seed of the split, the initial weights and the order of training images.
        images: Number of digits, training and test together; all by default.
        epochs: Number of passes over the training images.
        calibration: Number of training images, without labels, for pruning.
        rounds: Number of timed runs of each network, interleaved.

    Raises:
        ReapxError: a package that the demonstration needs is not installed; the message names the cure.
    """
    plots.require()
    digits = read_digits(seed, images)
    trained, tested = len(digits.train_images), len(digits.test_images)
    print(f"{digits.source}: {trained} to train, {tested} to test", flush=True)
    model = train(digits, epochs, seed)
    results = prune_variants(model, digits.train_images[:calibration])
    rows = compare(model, results, digits, rounds)
    print(f"\n{text_table(cells(rows), HEADER)}\n{READING.format(image=share(1 / tested))}\n")
    save_and_reload(results[REAP], output / "pruned", digits.test_images[:BATCH])
    lead = (
        f"A small residual network, trained for {epochs} epochs on {trained} {digits.source} and "
        f"pruned to {BUDGET:g} of its MACs with {min(calibration, trained)} of them, "
        f"without labels and without retraining. Accuracy is on {tested} other images; one is {share(1 / tested)}."
    )
    html.write_page(comparison_page(rows, results[REAP], lead), output / "report.html")
    print(WHAT_NEXT.format(output=output))


def prune_variants(model: nn.Module, images: Tensor) -> dict[str, Result]:
    """The network pruned to ``BUDGET`` of its MACs in each way of ``VARIANTS``."""
    results = {}
    for name, selection, allocation, reconstruct in VARIANTS:
        planned = plan(model, images, budget=MACs(BUDGET), selection=selection, allocation=allocation)
        results[name] = planned.apply(reconstruct=reconstruct)
        seconds = planned.seconds + results[name].seconds
        print(f"pruned to x{BUDGET:g} MACs by {name}: {seconds:.1f} s", flush=True)
    return results


def compare(model: nn.Module, results: dict[str, Result], digits: Digits, rounds: int) -> list[Row]:
    """Accuracy, costs and time of the original and of each result, in this order."""
    networks = [model, *(result.model for result in results.values())]
    plans = [result.plan for result in results.values()]
    macs = [plans[0].macs[0], *(planned.macs[1] for planned in plans)]
    params = [plans[0].params[0], *(planned.params[1] for planned in plans)]
    seconds = [0.0, *(r.plan.seconds + r.seconds for r in results.values())]
    times = batch_times(networks, digits.test_images[:BATCH], rounds)
    accuracies = [accuracy(network, digits.test_images, digits.test_labels) for network in networks]
    columns = (["original", *results], macs, params, accuracies, times, seconds)
    return [Row(*values) for values in zip(*columns, strict=True)]


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


def comparison_page(rows: Sequence[Row], result: Result, lead: str) -> str:
    """A page with the comparison as table and plot, and the report on one result."""
    panels = (
        ("accuracy (%)", [100 * row.accuracy for row in rows]),
        ("MACs per image (M)", [row.macs / 1e6 for row in rows]),
        ("ms per batch", [row.milliseconds for row in rows]),
    )
    drawing = plots.panels_figure([row.name for row in rows], panels)
    caption = f"Accuracy on the test images, MACs, and time of a batch of {BATCH} on one thread of this machine."
    comparison = html.section("Comparison", html.table(HEADER, cells(rows)), html.figure(drawing, caption))
    sections = [comparison, html.paragraph(f"The rest is about one of them: {REAP}."), *html.result_sections(result)]
    return html.page("reapx demo: handwritten digits at half the MACs", sections, lead)


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The comparison as text, under ``HEADER``."""
    return [[x.name, share(x.accuracy), short(x.macs), short(x.params), *_times(x)] for x in rows]


def _times(row: Row) -> list[str]:
    return [f"{row.milliseconds:.1f}", f"{row.seconds:.1f}" if row.seconds else ""]
