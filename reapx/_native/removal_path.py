"""What :func:`reapx.kernels.reap_path` returns: a path of removals, and the weights at any of its cuts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InputError
from .kernels import path_weights
from .tasks import CutsTask


@dataclass(frozen=True, eq=False)
class ReapPath:
    """Units in the order in which they leave, the exact errors, and the refitted weights after any number of removals.

    Attributes:
        order: (steps,) int64, the unit that leaves at each step.
        errors: (steps + 1,) float64, **undamped**, in squares of Y: ``errors[count]`` is that of ``weights(count)``
            after ``count`` removals. Given ``cross`` without ``target_square``, it is what was added to the error of
            ``weights(0)``; else it is ‖Y - X Wᵀ‖² itself.
        damped_errors: (steps + 1,) float64, by how much ``errors`` plus λ ‖W - reference‖² has grown; each step chose
            the unit for which it grows least. Without damping it is the growth of ``errors``.
        ridge: λ.
        taps: Columns of each unit.
    """

    order: Tensor
    errors: Tensor
    damped_errors: Tensor
    ridge: float
    taps: int
    _parts: tuple[Tensor, Tensor, Tensor] = field(repr=False)  # full weights, and the factors of what changes them

    def weights(self, count: int) -> Tensor:
        """(M, D) float64: the refitted weights after ``count`` removals, zero in the columns that have left.

        ``weights(count)[:, columns(count)]`` are those of the smaller layer.
        """
        weight, factor, residual = self._parts
        cuts = torch.tensor([self._checked(count)]).to(weight.device)
        found = torch.empty(1, *weight.shape, dtype=torch.float64, device=weight.device)
        units = unit_columns(weight, self.taps)
        path_weights([CutsTask(weight, units, self.order, factor, residual, cuts, found)])
        return found[0]

    def kept(self, count: int) -> Tensor:
        """(units - count,) int64, ascending: the units that are left after ``count`` removals."""
        weight = self._parts[0]
        alive = torch.ones(weight.shape[1] // self.taps, dtype=torch.bool, device=weight.device)
        alive[self.order[: self._checked(count)]] = False
        return alive.nonzero().flatten()

    def columns(self, count: int) -> Tensor:
        """((units - count) * taps,) int64, ascending: the columns of the units that are left."""
        return unit_columns(self._parts[0], self.taps)[self.kept(count)].flatten()

    def _checked(self, count: int) -> int:
        if not 0 <= count <= len(self.order):
            raise InputError(f"count={count}: this path has {len(self.order)} removals; give 0 to {len(self.order)}")
        return count


def unit_columns(matrix: Tensor, taps: int) -> Tensor:
    """(units, taps) int64: the columns that each unit owns."""
    return torch.arange(matrix.shape[1], device=matrix.device).reshape(-1, taps)


def distance_grown(factor: Tensor, residual: Tensor, pull: Tensor | None, taps: int) -> Tensor:
    """(steps + 1,) how much ‖W - reference‖² has grown after each step.

    The weights change by Δ = Σ_i v_i f_iᵀ over the rows of ``residual`` and ``factor`` so far, so that it grows by
    ‖Δ‖² - 2 <W₀ - reference, Δ>, the sum of a leading block of (V Vᵀ) ∘ (F Fᵀ) less those of inner products.
    """
    inner = (residual @ residual.T) * (factor @ factor.T)
    grown = 2 * inner.tril(-1).sum(1) + inner.diagonal()
    if pull is not None:
        grown -= 2 * ((residual @ pull) * factor).sum(1)
    return torch.cat([grown.new_zeros(1), grown.cumsum(0)])[::taps]
