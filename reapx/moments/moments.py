"""Moments: Gram matrices of layers' input patches, and damping that makes them positive definite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

_ROUNDING = 16 * torch.finfo(torch.float32).eps
"""Typical relative error of a float32 sum of 256 products, the longest sum that the kernels form in float32."""


@dataclass
class Moments:
    """Moments of the patches X (rows, features) of one conv group's input, in float64.

    Attributes:
        gram: (features, features) XᵀX.
        total: (features,) column sums of X.
        cross: (outputs, features) YᵀX, or None.
        target_total: (outputs,) column sums of Y, or None.
        target_square: (outputs,) column sums of Y², or None.
        rows: Number of patches.
        noise: Rounding error of the float32 products on the diagonal of ``gram``.
        largest_ridge: No ridge beyond this is multiplied further: it would only hide that the matrix is meaningless.
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
        """Moments about the mean if an intercept is fitted; else these moments themselves."""
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
        """Moments of some features, by ascending (count,) int64 indices; these moments themselves for all features."""
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
            ValueError: the moments have no targets Y.
        """
        if self.target_square is None or self.cross is None:
            raise ValueError("these moments have no targets")
        fitted = (weight @ self.gram) * weight - 2 * weight * self.cross
        return float(self.target_square.sum() + fitted.sum())

    def ridge(self, damping: float) -> float:
        """The ridge λ of a damping: this fraction of the mean diagonal of the Gram matrix.

        A damping above zero gives at least the rounding error ``noise``; 0 gives 0.
        """
        if damping == 0 or len(self.gram) == 0:
            return 0.0
        mean = float(self.gram.diagonal().mean())
        return max(damping * mean, self.noise) or damping

    def ridges(self, damping: float) -> Iterator[float]:
        """Ridges to try in turn: ``ridge``, then ten times the one before, until one reaches ``largest_ridge``.

        Further ridges are needed where rounding made the matrix indefinite.
        """
        ridge = self.ridge(damping)
        yield ridge
        while 0 < ridge < self.largest_ridge:
            ridge *= 10
            yield ridge


def damp(
    moments: Sequence[Moments], damping: float, attempt: Callable[[list[int], list[float]], list[int]]
) -> list[int]:
    """Raise the ridge of each Gram matrix until it is positive definite.

    Each attempt handles all matrices that have not succeeded yet. ``ridges`` holds one iterator for each matrix, which
    can be read once: ``islice(ridges[i], 1)`` takes its next ridge, or none where the largest one has failed.

    Example: matrices 0 and 1 both have ridges 0.1, 1 and 10. ``attempt([0, 1], [0.1, 0.1])`` returns [-1, 4]: matrix 0
    succeeded, and matrix 1 failed at pivot 4. ``attempt([1], [1.0])`` returns [-1]. No matrix remains, and the result
    is [-1, -1]. If matrix 1 also failed at 1 and 10, its iterator would be empty, and the result [-1, 4].

    Args:
        moments: Moments whose Gram matrices are damped.
        damping: See :meth:`Moments.ridges`.
        attempt: Gets indices of moments and a ridge for each; returns for each the failed pivot, or -1.

    Returns:
        For each -1, or the pivot that failed at the largest ridge.
    """
    ridges = [own.ridges(damping) for own in moments]
    pivots = [0] * len(moments)
    remaining = list(range(len(moments)))
    while tries := {i: ridge for i in remaining for ridge in islice(ridges[i], 1)}:
        for i, pivot in zip(tries, attempt(list(tries), list(tries.values())), strict=True):
            pivots[i] = pivot
        remaining = [i for i in tries if pivots[i] >= 0]
    return pivots
