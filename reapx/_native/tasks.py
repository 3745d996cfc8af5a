"""What the kernels are given: tensors by the names of their equations. Passed on by :mod:`reapx._native`.

Fields are in the order in which ``csrc/bindings.cpp`` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Window:
    """How a convolution reads its input; every pair is (rows, columns).

    ``padding`` counts the zeros before the first row and column. Zeros after the last ones follow
    from the output size, so they may differ.
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
        scale: this consumer's share in the score.
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
    """U units that leave one by one, T of them, from all consumers at once.

    Args:
        consumers: at least one; all with the same U, each with its own q.
        forced: (F,) int64: units that leave first, in this order.
        order: (T,) int64, overwritten: the unit that left at each step.
        errors: (T,) float64, overwritten: by how much the scaled error grew at each step.
        status: (1,) int64, overwritten: -1, or the step whose pivot block was not positive
            definite; outputs from that step on are zero.
    """

    consumers: list[PathConsumer]
    forced: Tensor
    order: Tensor
    errors: Tensor
    status: Tensor


@dataclass
class CutsTask:
    """One consumer of a path that was found, and the cuts at which its weights are wanted.

    Args:
        weight: (M, D) float64: the full weights.
        columns: (U, q) int64, distinct.
        order: (T,) int64: the units that left.
        factor: (T * q, D) float64, as :class:`PathConsumer` has it after ``path_eliminate``.
        residual: (T * q, M) float64, likewise.
        cuts: (n,) int64, ascending: numbers of units that have left, 0 .. T.
        weights: (n, M, D) float64, overwritten: at cut t ``weight - residual[: t * q].T @ factor[: t * q]``, with
            exact zeros in the columns of units that have left.
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
        reference: (M, D) float64, what the damping pulls towards; None for zero.
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
        scale: this consumer's share in the error, not negative.
        gains: (T,) float64, overwritten: by what the removed unit's taps were multiplied when they were added
            to its partner's.
    """

    gram: Tensor
    weight: Tensor
    columns: Tensor
    scale: float
    gains: Tensor


@dataclass
class PairTask:
    """U units of which T, fewer than U, are emulated by others, one by one, for all consumers at once.

    Args:
        consumers: at least one; all with the same U, each with its own q.
        table: (U, U) float64, overwritten: before any step, the error of letting the column's unit emulate the
            row's; inf on the diagonal. None if it is not wanted.
        removed: (T,) int64, overwritten: the unit that left at each step.
        partner: (T,) int64, overwritten: the unit that emulates it from then on. It may leave later.
        errors: (T,) float64, overwritten: by how much each step raised the total error, which is the scaled error of
            the weights as they are then against those before the first step. It may fall. The sum is that of the
            weights at the end.
    """

    consumers: list[PairConsumer]
    table: Tensor | None
    removed: Tensor
    partner: Tensor
    errors: Tensor
