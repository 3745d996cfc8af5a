"""Moments: the Gram matrices of layers' input patches, and how they are damped until they are definite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

_ROUNDING = 16 * torch.finfo(torch.float32).eps
"""Typical relative error of a float32 sum of 256 products, the longest that the kernels form."""


@dataclass
class Moments:
    """Sums over all patches X (rows, features) of one conv group's input, in float64.

    Attributes:
        gram: (features, features) XᵀX.
        total: (features,) column sums of X.
        cross: (outputs, features) YᵀX, or None.
        target_total: (outputs,) column sums of Y, or None.
        target_square: (outputs,) column sums of Y², or None.
        rows: Number of patches.
        noise: What rounding of the float32 products leaves uncertain on the diagonal of ``gram``.
        largest_ridge: Damping beyond this only hides that the matrix says nothing.
    """

    gram: Tensor
    total: Tensor
    rows: int
    cross: Tensor | None = None
    target_total: Tensor | None = None
    target_square: Tensor | None = None
    noise: float = 0.0
    largest_ridge: float = 0.0

    def __post_init__(self) -> None:
        if len(self.gram):
            self.largest_ridge = max(float(self.gram.diagonal().mean()), 1.0)

    def centred(self, intercept: bool) -> Moments:
        """Moments about the mean where an intercept is fitted, else these moments themselves."""
        if not intercept or self.rows == 0:
            return self
        mean = self.total / self.rows
        result = Moments(self.gram - torch.outer(self.total, mean), self.total, self.rows)
        result.largest_ridge = self.largest_ridge
        result.noise = _ROUNDING * float(self.gram.diagonal().mean())
        if self.cross is not None and self.target_total is not None:
            result.cross = self.cross - torch.outer(self.target_total, mean)
            result.target_total = self.target_total
        if self.target_square is not None and self.target_total is not None:
            result.target_square = self.target_square - self.target_total**2 / self.rows
        return result

    def of_columns(self, columns: Tensor) -> Moments:
        """Moments of some of the features, by their rising (count,) int64 indices; these themselves for all."""
        if len(columns) == len(self.gram):
            return self
        gram, cross = self.gram[columns][:, columns], None if self.cross is None else self.cross[:, columns]
        totals = self.target_total, self.target_square
        result = Moments(gram, self.total[columns], self.rows, cross, *totals, noise=self.noise)
        result.largest_ridge = self.largest_ridge
        return result

    def error(self, weight: Tensor) -> float:
        """‖Y - X Wᵀ‖², given W (outputs, features).

        Raises:
            ValueError: there are no targets Y.
        """
        if self.target_square is None or self.cross is None:
            raise ValueError("these moments have no targets")
        fitted = (weight @ self.gram) * weight - 2 * weight * self.cross
        return float(self.target_square.sum() + fitted.sum())

    def ridge(self, damping: float) -> float:
        """Damping as an absolute value: a fraction of the mean diagonal of the Gram matrix.

        Any damping at all is raised to the rounding noise, below which the matrix says nothing.
        """
        if damping == 0 or len(self.gram) == 0:
            return 0.0
        mean = float(self.gram.diagonal().mean())
        return max(damping * mean, self.noise) or damping

    def ridges(self, damping: float) -> Iterator[float]:
        """Ridges to try in turn: ``ridge``, then ten times more each, where rounding left the matrix indefinite."""
        ridge = self.ridge(damping)
        yield ridge
        while 0 < ridge < self.largest_ridge:
            ridge *= 10
            yield ridge


def damp(
    moments: Sequence[Moments], damping: float, attempt: Callable[[list[int], list[float]], list[int]]
) -> list[int]:
    """Raise each one's ridge until its matrix is definite; all that are not yet go into one attempt.

    Args:
        moments: What to damp.
        damping: See :meth:`Moments.ridges`.
        attempt: Given indices of moments and a ridge for each, what pivot failed, or -1.

    Returns:
        For each -1, or the pivot that failed at its largest ridge too.
    """
    ridges = [own.ridges(damping) for own in moments]
    pivots = [0] * len(moments)
    left = list(range(len(moments)))
    while tries := {i: ridge for i in left for ridge in islice(ridges[i], 1)}:
        for i, pivot in zip(tries, attempt(list(tries), list(tries.values())), strict=True):
            pivots[i] = pivot
        left = [i for i in tries if pivots[i] >= 0]
    return pivots
