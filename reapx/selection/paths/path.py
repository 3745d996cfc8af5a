"""What every selection method gives."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .refitted_weights import RefittedWeights
from .weight_changes import WeightChanges


@dataclass(frozen=True)
class Path:
    """An order of removal.

    Attributes:
        order: (steps,) int64, units in the order in which they leave.
        errors: (steps,) float64, what each removal adds to the damped reconstruction error, as a share of the
            variance of the consumers' outputs, averaged over consumers; NaN where nothing was measured.
        final: The undamped reconstruction error after the last step, in the same unit.
        refitted: The consumers' weights at any cut; None where they were not asked for.
        own_changes: What the method itself does with the weights that stay, without least squares; None where it does
            nothing.
    """

    order: Tensor
    errors: Tensor
    final: float
    refitted: RefittedWeights | None = field(default=None, repr=False)
    own_changes: WeightChanges | None = field(default=None, repr=False)

    @classmethod
    def unmeasured(cls, order: Tensor) -> Path:
        """An order whose errors nobody knows."""
        return cls(order, torch.full((len(order),), torch.nan, dtype=torch.float64), torch.nan)

    def error(self, count: int) -> float:
        """The reconstruction error after ``count`` removals: undamped after all, or where there are refits."""
        if count == len(self.errors) and self.refitted is None:
            return self.final
        damped = float(self.errors[:count].sum())
        return damped if self.refitted is None else max(damped - self.refitted.penalty(count), 0.0)

    def removed(self, count: int) -> Tensor:
        """The first ``count`` units of the order, sorted."""
        return self.order[:count].sort().values
