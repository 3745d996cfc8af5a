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
from tables import table
from timing import Target, interleaved

from reapx import _native
from reapx._native import Window

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
    target: Target
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
        named = {"work": self.work, "fixed": self.fixed, "size": self.size, "exponent": self.exponent}
        measured = {"values": self.values, "seconds": seconds, "fitted": round(self.fitted, 2)}
        return {**named, **self.target.as_dict(), **measured}


def measure(target: Target, quick: bool) -> list[Series]:
    """All series on one target."""
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
        seconds = [interleaved([call(value)], rounds, target)[0] for value in chosen]
        return Series(work, fixed, size, exponent, target, chosen, seconds)

    channels = [16, 32, 64, 128, 256, 512]
    return [
        series("Gram", "16 images of 16x16, k = 3", "C", 2, channels, lambda c: _gram(target, 16, c, 3)),
        series("Gram", "64 images of 16x16, C = 64", "k", 2, [1, 3, 5, 7], lambda k: _gram(target, 64, 64, k)),
        series("Gram", "C = 64, 16x16, k = 3", "images", 1, [32, 64, 128, 256, 512], lambda n: _gram(target, n, 64, 3)),
        series("basis", "k = 3", "C", 3, channels, lambda c: _basis(target, c)),
        series("basis + path", "k = 3, M = C, remove C / 2", "C", 3, channels, lambda c: _select(target, c)),
        Series(
            EXTRAPOLATED, "k = 3, M = C, remove C / 2", "C", 5, target, *_naive(target, [16, 32] if quick else channels)
        ),
    ]


def _gram(target: Target, images: int, channels: int, kernel: int) -> Callable[[], object]:
    x = torch.randn(images, channels, 16, 16, device=target.device).relu()
    gram, total = sums_for(channels * kernel**2, target)
    window = Window((kernel, kernel), padding=(kernel // 2, kernel // 2))
    return lambda: accumulate(x, window, (16, 16), gram, total)


def _basis(target: Target, channels: int) -> Callable[[], object]:
    problem = problems.make(channels, 9, 1, target)
    basis = torch.empty_like(problem.gram)
    return lambda: _native.basis_compute([problem.gram], [problem.ridge], [basis])


def _select(target: Target, channels: int) -> Callable[[], object]:
    problem = problems.make(channels, 9, channels, target)
    return lambda: problems.select(problem, channels // 2)


def _naive(target: Target, channels: list[int]) -> tuple[list[int], list[float]]:
    """Extrapolated from refits timed at a few sizes."""
    seconds = []
    for count in channels:
        problem = problems.make(count, 9, count, target)
        seconds.append(naive_seconds(problem.damped, problem.weight, problem.columns, count // 2, 4, target))
    return channels, seconds


def show(found: Sequence[Series]) -> str:
    """One line for each series."""
    lines = [
        [
            s.work,
            s.fixed,
            s.target.label,
            s.size,
            "  ".join(f"{v}: {seconds_text(t)}" for v, t in zip(s.values, s.seconds, strict=True)),
            ("~" if s.work == EXTRAPOLATED else "") + f"{s.fitted:.2f}",
            f"{s.exponent:g}",
        ]
        for s in found
    ]
    return table(lines, ["work", "with", "threads", "size", "time", "fitted", "formula"])


def _team(target: Target) -> str:
    if target.cuda:
        return target.name
    return f"{target.threads} threads" if target.threads > 1 else "1 thread"


def plot(found: Sequence[Series], path: Path) -> None:
    """Seconds over channels, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    colours = {"naive loop": "tab:red", "basis + path": "tab:blue", "basis": "tab:cyan", "Gram": "tab:green"}
    most = max(s.target.threads for s in found)
    for s in found:
        if s.size != "C" or (s.work == EXTRAPOLATED and s.target.threads != most):
            continue
        style = "-" if s.target.threads == most else "--"
        label = f"{s.work}, {_team(s.target)}"
        if s.work == EXTRAPOLATED:
            label += " (extrapolated from timed refits)"
        axes.plot(s.values, s.seconds, style, marker="o", color=colours[s.work], label=label)
    axes.set(xscale="log", yscale="log", xlabel="channels of a 3x3 convolution", ylabel="seconds")
    axes.set_xticks(found[0].values, [str(v) for v in found[0].values])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
