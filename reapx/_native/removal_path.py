"""The result of :func:`reapx.kernels.reap_path`: a path of removals, and the weights at any cut."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InputError
from .kernels import path_weights
from .tasks import CutsTask


@dataclass(frozen=True, eq=False)
class ReapPath:
    """The order of removal, exact errors, and the refitted weights after any number of removals.

    Attributes:
        order: (steps,) int64, the unit removed at each step.
        errors: (steps + 1,) float64, **undamped**, in squares of Y: ``errors[count]`` is the error of
            ``weights(count)``, ‖Y - X Wᵀ‖². For a path from ``cross`` without ``target_square`` it is the increase over
            the error of ``weights(0)``.
        damped_errors: (steps + 1,) float64, the increase of ``errors`` plus λ ‖W - reference‖² over that of
            ``weights(0)``. Each step removes the unit with the least increase.
        ridge: Absolute damping λ.
        taps: Number of columns of each unit.
    """

    order: Tensor
    errors: Tensor
    damped_errors: Tensor
    ridge: float
    taps: int
    _parts: tuple[Tensor, Tensor, Tensor] = field(repr=False)  # the full weights, and the factors of their change

    def weights(self, count: int) -> Tensor:
        """(M, D) float64: the refitted weights after ``count`` removals, zero in the columns of removed units.

        ``weights(count)[:, columns(count)]`` are the weights of the smaller layer.

        Raises:
            InputError: ``count`` is not between 0 and the number of removals.
        """
        weight, factor, residual = self._parts
        cuts = torch.tensor([self._checked(count)]).to(weight.device)
        found = torch.empty(1, *weight.shape, dtype=torch.float64, device=weight.device)
        units = unit_columns(weight, self.taps)
        path_weights([CutsTask(weight, units, self.order, factor, residual, cuts, found)])
        return found[0]

    def kept(self, count: int) -> Tensor:
        """(units - count,) int64, ascending: the units that remain after ``count`` removals."""
        weight = self._parts[0]
        alive = torch.ones(weight.shape[1] // self.taps, dtype=torch.bool, device=weight.device)
        alive[self.order[: self._checked(count)]] = False
        return alive.nonzero().flatten()

    def columns(self, count: int) -> Tensor:
        """((units - count) * taps,) int64, ascending: the columns of the units that remain."""
        return unit_columns(self._parts[0], self.taps)[self.kept(count)].flatten()

    def _checked(self, count: int) -> int:
        if not 0 <= count <= len(self.order):
            raise InputError(f"count={count}: this path has {len(self.order)} removals; give 0 to {len(self.order)}")
        return count


def unit_columns(matrix: Tensor, taps: int) -> Tensor:
    """(units, taps) int64: the columns of each unit."""
    return torch.arange(matrix.shape[1], device=matrix.device).reshape(-1, taps)


def distance_grown(factor: Tensor, residual: Tensor, pull: Tensor | None, taps: int) -> Tensor:
    """(steps + 1,) float64: the increase of ‖W - reference‖² after each step.

    After a step, the weights are W₀ - Δ with Δ = Σ_i v_i f_iᵀ over the rows of ``residual`` and ``factor`` so far. The
    increase is ‖Δ‖² - 2 <W₀ - reference, Δ>. Its first term is the sum of a leading block of (V Vᵀ) ∘ (F Fᵀ).
    """
    inner = (residual @ residual.T) * (factor @ factor.T)
    grown = 2 * inner.tril(-1).sum(1) + inner.diagonal()
    if pull is not None:
        grown -= 2 * ((residual @ pull) * factor).sum(1)
    return torch.cat([grown.new_zeros(1), grown.cumsum(0)])[::taps]
