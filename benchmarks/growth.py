"""How the cost grows with channels, kernel size, images and threads; exponents fitted next to the formula's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import problems
import torch
from baselines import naive_seconds
from gram import accumulate, sums_for
from rows import seconds_text
from timing import RESULTS, interleaved

from reapx import _native
from reapx._native import Window
from reapx.report.text import table

EXTRAPOLATED = "naive loop"
Case = Callable[[int], Callable[[], object]]
"""From a size to what is timed."""


@dataclass
class Series:
    """Seconds over one size, all else fixed.

    Attributes:
        exponent: What the formula says: of the size, for large sizes.
    """

    work: str
    fixed: str
    size: str
    exponent: float
    threads: int
    values: list[int]
    seconds: list[float]

    @property
    def fitted(self) -> float:
        """Slope of log seconds over log size, of the upper half of the sizes."""
        upper = max(2, (len(self.values) + 1) // 2)
        x = torch.tensor([math.log(v) for v in self.values[-upper:]], dtype=torch.float64)
        y = torch.tensor([math.log(s) for s in self.seconds[-upper:]], dtype=torch.float64)
        x, y = x - x.mean(), y - y.mean()
        return float((x * y).sum() / (x * x).sum())

    def as_dict(self) -> dict[str, object]:
        """For the JSON file."""
        seconds = [float(f"{s:.3g}") for s in self.seconds]
        return {**vars(self), "seconds": seconds, "fitted": round(self.fitted, 2)}


def measure(threads: int, quick: bool) -> list[Series]:
    """All series at one number of threads."""
    rounds = 1 if quick else 5

    def series(
        work: str,
        fixed: str,
        size: str,
        exponent: float,
        values: list[int],
        call: Callable[[int], Callable[[], object]],
    ) -> Series:
        chosen = values[:2] if quick else values
        seconds = [interleaved([call(value)], rounds)[0] for value in chosen]
        return Series(work, fixed, size, exponent, threads, chosen, seconds)

    channels = [16, 32, 64, 128, 256, 512]
    return [
        series("Gram", "16 images of 16x16, k = 3", "C", 2, channels, lambda c: _gram(16, c, 3)),
        series("Gram", "64 images of 16x16, C = 64", "k", 2, [1, 3, 5, 7], lambda k: _gram(64, 64, k)),
        series("Gram", "C = 64, 16x16, k = 3", "images", 1, [32, 64, 128, 256, 512], lambda n: _gram(n, 64, 3)),
        series("basis", "k = 3", "C", 3, channels, _basis),
        series("basis + path", "k = 3, M = C, remove C / 2", "C", 3, channels, _select),
        Series(EXTRAPOLATED, "k = 3, M = C, remove C / 2", "C", 5, threads, *_naive([16, 32] if quick else channels)),
    ]


def _gram(images: int, channels: int, kernel: int) -> Callable[[], object]:
    x = torch.randn(images, channels, 16, 16).relu()
    gram, total = sums_for(channels * kernel**2)
    window = Window((kernel, kernel), padding=(kernel // 2, kernel // 2))
    return lambda: accumulate(x, window, (16, 16), gram, total)


def _basis(channels: int) -> Callable[[], object]:
    problem = problems.make(channels, 9, 1)
    basis = torch.empty_like(problem.gram)
    return lambda: _native.basis_compute([problem.gram], [problem.ridge], [basis])


def _select(channels: int) -> Callable[[], object]:
    problem = problems.make(channels, 9, channels)
    return lambda: problems.select(problem, channels // 2)


def _naive(channels: list[int]) -> tuple[list[int], list[float]]:
    """Extrapolated from refits timed at a few sizes."""
    seconds = []
    for count in channels:
        problem = problems.make(count, 9, count)
        seconds.append(naive_seconds(problem.damped, problem.weight, problem.columns, count // 2, points=4))
    return channels, seconds


def show(found: Sequence[Series]) -> str:
    """One line for each series."""
    lines = [
        [
            s.work,
            s.fixed,
            str(s.threads),
            s.size,
            "  ".join(f"{v}: {seconds_text(t)}" for v, t in zip(s.values, s.seconds, strict=True)),
            ("~" if s.work == EXTRAPOLATED else "") + f"{s.fitted:.2f}",
            f"{s.exponent:g}",
        ]
        for s in found
    ]
    return table(lines, ["work", "with", "threads", "size", "time", "fitted", "formula"])


def plot(found: Sequence[Series], path: Path | None = None) -> Path:
    """Seconds over channels, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    colours = {"naive loop": "tab:red", "basis + path": "tab:blue", "basis": "tab:cyan", "Gram": "tab:green"}
    most = max(s.threads for s in found)
    for s in found:
        if s.size != "C" or (s.work == EXTRAPOLATED and s.threads != most):
            continue
        style = "-" if s.threads == most else "--"
        label = f"{s.work}, {s.threads} threads" if s.threads > 1 else f"{s.work}, 1 thread"
        if s.work == EXTRAPOLATED:
            label += " (extrapolated from timed refits)"
        axes.plot(s.values, s.seconds, style, marker="o", color=colours[s.work], label=label)
    axes.set(xscale="log", yscale="log", xlabel="channels of a 3x3 convolution", ylabel="seconds")
    axes.set_xticks(found[0].values, [str(v) for v in found[0].values])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path = path or RESULTS / "growth.png"
    figure.savefig(path, dpi=110)
    return path
