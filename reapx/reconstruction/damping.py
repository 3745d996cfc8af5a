"""Damping: how strongly a layer's fit is pulled towards its old weights, chosen by the error on held-out images.

With moments of the held-out images as well, the error there of any weights W with intercept b follows without another
pass over them::

    ‖Y - XWᵀ - 1bᵀ‖² = ‖Y‖² - 2 tr(W Bᵀ) + tr(W G Wᵀ) - 2 bᵀ(ΣY - W ΣX) + n ‖b‖²,      B = YᵀX, G = XᵀX
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _native
from ..errors import NumericalError
from ..moments.measure import Accumulator
from ..moments.moments import Moments, damp
from .rectify import FittedWeights

GRID = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
"""Dampings to choose from, fractions of the mean diagonal of the Gram matrix; besides, the old weights may stay."""

START = 1
"""The entry of ``GRID`` that is tried first; its neighbours follow as long as the error falls."""

SMALL = 32
"""Systems of at most so many features are solved many at a time."""


@dataclass(frozen=True)
class DampedFit:
    """A layer's fit at the damping that was chosen.

    Attributes:
        fit: The weights.
        damping: A fraction of the mean diagonal; ``inf`` where the old weights are no worse.
    """

    fit: FittedWeights
    damping: float


@dataclass(frozen=True)
class LayerProblem:
    """What a layer's least-squares problem is made of. G conv groups, M outputs and D features each.

    Attributes:
        name: The layer's, for errors.
        fitted: Moments of the images that are fitted.
        judged: Moments of the held-out images; None where all images are fitted.
        old: (G, M, D) float64, what damping pulls towards; zero where features are not read.
        columns: (count,) int64: features whose weights may change.
        intercept: Whether an intercept is fitted.
        bias: (G * M,) float64, the old one, zero without one.
        usable: (G * M,) bool: outputs that may change.
        weights: (G * M,) float64: what an output's squared error counts in the choice.
    """

    name: str
    fitted: Accumulator
    judged: Accumulator | None
    old: Tensor
    columns: Tensor
    intercept: bool
    bias: Tensor
    usable: Tensor
    weights: Tensor

    def with_intercept(self, weight: Tensor) -> FittedWeights:
        """Weights (G, M, D) with the intercept that suits them best on the fitted images."""
        weight = torch.where(self.usable.reshape(*self.old.shape[:2], 1), weight, self.old)
        shift = torch.zeros_like(self.bias)
        if self.intercept:
            assert self.fitted.target_total is not None
            product = (weight * self.fitted.total[:, None]).sum(2).flatten()
            shift = (self.fitted.target_total - product) / max(self.fitted.rows, 1)
        return FittedWeights(weight, torch.where(self.usable, shift, self.bias))

    def error(self, fit: FittedWeights) -> float:
        """Squared error on the held-out images as a share of the target's variance there, outputs weighted; NaN
        without such images."""
        if self.judged is None:
            return math.nan
        squares, variances = held_out_squares(self.judged, fit, self.intercept)
        total = float((self.weights * variances).sum())
        return max(float((self.weights * squares).sum()), 0.0) / max(total, 1e-300)


def held_out_squares(moments: Accumulator, fit: FittedWeights, centred: bool) -> tuple[Tensor, Tensor]:
    """Squared errors of a fit, and the target's own squares (about the mean where ``centred``), of each output."""
    assert moments.cross is not None and moments.target_total is not None and moments.target_square is not None
    weight, shift = fit.weight, fit.intercept
    squares = ((weight @ moments.gram - 2 * moments.cross) * weight).sum(2).flatten() + moments.target_square
    remaining = moments.target_total - (weight * moments.total[:, None]).sum(2).flatten()
    squares = squares - 2 * shift * remaining + moments.rows * shift.square()
    mean = moments.target_total.square() / max(moments.rows, 1)
    return squares, moments.target_square - mean if centred else moments.target_square


def fit_layer(problem: LayerProblem, moments: Sequence[Moments], damping: float | None) -> DampedFit:
    """The least-squares fit at a given damping, or at that with the smallest error on the held-out images.

    Args:
        moments: Of the fitted images, one per conv group, about the mean where an intercept is fitted.
        damping: A fraction of the mean diagonal; infinite to keep the old weights; None to choose.

    Raises:
        NumericalError: the system is singular.
    """
    kept = problem.with_intercept(problem.old)
    if damping == math.inf:
        return DampedFit(kept, damping)
    if damping is not None:
        return DampedFit(problem.with_intercept(solve(problem, moments, damping)), damping)
    found: dict[int, tuple[float, FittedWeights]] = {}

    def error(index: int) -> float:
        if index not in found:
            fit = problem.with_intercept(solve(problem, moments, GRID[index]))
            found[index] = (problem.error(fit), fit)
        return found[index][0]

    best = descend(error, len(GRID), START)
    if problem.error(kept) <= error(best):
        return DampedFit(kept, math.inf)
    return DampedFit(found[best][1], GRID[best])


def descend(error: Callable[[int], float], count: int, start: int) -> int:
    """Where an error over 0, 1, ..., count - 1 is smallest, found by going downhill from ``start``."""
    best = start
    for step in (1, -1):
        while 0 <= best + step < count and error(best + step) < error(best):
            best += step
        if best != start:
            break
    return best


def solve(problem: LayerProblem, moments: Sequence[Moments], damping: float) -> Tensor:
    """Least-squares weights (G, M, D) of all conv groups, damped towards the old ones; zero but in ``columns``."""
    columns = problem.columns
    moments, old = [part.of_columns(columns) for part in moments], problem.old[:, :, columns]
    weight, kept = torch.empty_like(old), torch.arange(old.shape[2], device=old.device)

    def attempt(indices: list[int], ridges: list[float]) -> list[int]:
        if len(indices) > 1 and old.shape[2] <= SMALL:
            return _solve_small([moments[i] for i in indices], old, weight, indices, ridges)
        tasks = []
        for i, ridge in zip(indices, ridges, strict=True):
            own = moments[i]
            assert own.cross is not None
            tasks.append(
                _native.SolveTask(own.gram.contiguous(), own.cross.contiguous(), kept, ridge, old[i], weight[i])
            )
        return _native.batch_solve(tasks)

    pivot = max(damp(moments, damping, attempt), default=-1)
    if pivot >= 0:
        raise NumericalError(
            f"{problem.name}: the least-squares system is singular at feature {pivot} at damping={damping}: "
            "raise it, or give more images"
        )
    return torch.zeros_like(problem.old).index_copy_(2, columns, weight)


def _solve_small(
    moments: Sequence[Moments], old: Tensor, weight: Tensor, indices: list[int], ridges: list[float]
) -> list[int]:
    """Write the weights of many small systems in one batch; returns the pivots that failed, or -1."""
    ridge = old.new_tensor(ridges)[:, None, None]
    gram = torch.stack([own.gram for own in moments])
    gram.diagonal(dim1=1, dim2=2).add_(ridge[:, 0])
    cross = torch.stack([own.cross for own in moments if own.cross is not None]) + ridge * old[indices]
    factor, failed = torch.linalg.cholesky_ex(gram)
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    factor = torch.where((failed == 0)[:, None, None], factor, identity)  # what failed is tried again, or raised
    weight[indices] = torch.cholesky_solve(cross.mT, factor).mT
    pivots: list[int] = (failed - 1).tolist()
    return pivots
