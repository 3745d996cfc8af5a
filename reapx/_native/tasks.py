"""Arguments of the kernels: tensors, named after the symbols of their equations. :mod:`reapx._native` exports them.

The fields stand in the order in which ``csrc/bindings.cpp`` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Window:
    """How a convolution reads its input; every pair is (rows, columns).

    ``padding`` counts the zeros before the first row and column. The number of zeros after the last row and column
    follows from the output size and may differ.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass
class PathConsumer:
    """One weight that reads the units of a :class:`PathTask`. D features, M outputs, q taps a unit.

    Args:
        basis: (D, D) float64, symmetric: the inverse of the (damped) Gram matrix.
        weight: (M, D) float64: the full weights, refitted, so that the errors below are exact.
        columns: (U, q) int64, distinct: the columns of each unit. Columns may belong to no unit.
        scale: factor of this consumer's error in the score.
        factor: (T * q, D) float64, overwritten: Lᵀ. Weights after t steps are
            ``weight - residual[: t * q].T @ factor[: t * q]``.
        residual: (T * q, M) float64, overwritten: V.
    """

    basis: Tensor
    weight: Tensor
    columns: Tensor
    scale: float
    factor: Tensor
    residual: Tensor


@dataclass
class PathTask:
    """T of U units leave one by one, each from all consumers at once.

    Args:
        consumers: at least one; all with the same U, each with its own q.
        forced: (F,) int64: units that must leave first, in this order.
        order: (T,) int64, overwritten: the unit removed at each step.
        errors: (T,) float64, overwritten: increase of the scaled error at each step.
        status: (1,) int64, overwritten: -1, or the first step whose pivot block was not positive
            definite; all outputs of that step and later ones are zero.
    """

    consumers: list[PathConsumer]
    forced: Tensor
    order: Tensor
    errors: Tensor
    status: Tensor


@dataclass
class CutsTask:
    """One consumer of a path that ``path_eliminate`` found, and the cuts at which its weights are computed.

    Args:
        weight: (M, D) float64: the full weights.
        columns: (U, q) int64, distinct.
        order: (T,) int64: the removed units, in this order.
        factor: (T * q, D) float64, that of :class:`PathConsumer` after ``path_eliminate``.
        residual: (T * q, M) float64, that of :class:`PathConsumer` after ``path_eliminate``.
        cuts: (n,) int64, ascending: numbers of removed units, 0 .. T.
        weights: (n, M, D) float64, overwritten: at cut t ``weight - residual[: t * q].T @ factor[: t * q]``, with
            exact zeros in the columns of removed units.
    """

    weight: Tensor
    columns: Tensor
    order: Tensor
    factor: Tensor
    residual: Tensor
    cuts: Tensor
    weights: Tensor


@dataclass
class SolveTask:
    """Weights on kept features: ``W (G_RR + ridge I) = cross_R + ridge reference_R``.

    Args:
        gram: (D, D) float64, symmetric.
        cross: (M, D) float64: YᵀX.
        kept: (n,) int64, distinct: R.
        ridge: added to the diagonal.
        reference: (M, D) float64, the weights that damping pulls towards; None for zero.
        weight: (M, n) float64, overwritten.
    """

    gram: Tensor
    cross: Tensor
    kept: Tensor
    ridge: float
    reference: Tensor | None
    weight: Tensor


@dataclass
class PairConsumer:
    """One weight that reads the units of a :class:`PairTask`. D features, M outputs, q taps a unit.

    Args:
        gram: (D, D) float64, symmetric.
        weight: (M, D) float64, updated in place by the T steps.
        columns: (U, q) int64, distinct: the columns of each unit. Columns may belong to no unit.
        scale: factor of this consumer's error in the total, not negative.
        gains: (T,) float64, overwritten: the gain of each step, by which the removed unit's weights were multiplied
            before they were added to its partner's.
    """

    gram: Tensor
    weight: Tensor
    columns: Tensor
    scale: float
    gains: Tensor


@dataclass
class PairTask:
    """T of U units, T < U, leave one by one; each is emulated by another unit, in all consumers at once.

    Args:
        consumers: at least one; all with the same U, each with its own q.
        table: (U, U) float64, overwritten: before any step, the error where the column's unit emulates the row's;
            inf on the diagonal. None to skip it.
        removed: (T,) int64, overwritten: the unit removed at each step.
        partner: (T,) int64, overwritten: the unit that emulates it from then on. It may leave later.
        errors: (T,) float64, overwritten: the change of the total error at each step; a step may lower it. The total
            error compares the present weights with those before the first step, so the entries sum to the error
            of the final weights.
    """

    consumers: list[PairConsumer]
    table: Tensor | None
    removed: Tensor
    partner: Tensor
    errors: Tensor
