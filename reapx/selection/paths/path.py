"""The result of every selection method: an order of removal with exact errors."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .refitted_weights import RefittedWeights
from .weight_changes import WeightChanges


@dataclass(frozen=True)
class Path:
    """The units of a group in the order in which they leave, and what each removal costs.

    Attributes:
        order: (steps,) int64 units, the first to leave first.
        errors: (steps,) float64, increase of the damped reconstruction error at each removal, as a share of the
            variance of the consumers' outputs, averaged over consumers; NaN where nothing was measured.
        final: The undamped reconstruction error after the last step, in the same unit.
        refitted: The consumers' refitted weights at any cut; None where the caller did not ask for them.
        own_changes: The method's own change of the remaining weights, made without least squares; None for methods
            that only choose units.
    """

    order: Tensor
    errors: Tensor
    final: float
    refitted: RefittedWeights | None = field(default=None, repr=False)
    own_changes: WeightChanges | None = field(default=None, repr=False)

    @classmethod
    def unmeasured(cls, order: Tensor) -> Path:
        """A path whose errors were not measured."""
        return cls(order, torch.full((len(order),), torch.nan, dtype=torch.float64), torch.nan)

    def error(self, count: int) -> float:
        """The reconstruction error after ``count`` removals.

        It is undamped after the last step, and at every step where refitted weights are known; else it is damped.
        """
        if count == len(self.errors) and self.refitted is None:
            return self.final
        damped = float(self.errors[:count].sum())
        return damped if self.refitted is None else max(damped - self.refitted.penalty(count), 0.0)

    def removed(self, count: int) -> Tensor:
        """The first ``count`` units of the order, sorted."""
        return self.order[:count].sort().values
