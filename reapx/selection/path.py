"""What every selection method takes and gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..moments import Moments
from .refits import Refits


@dataclass(frozen=True)
class Reader:
    """One consumer of a group, as selection sees it.

    Attributes:
        weight: (outputs, features) float64, rows scaled by the norm that follows the layer.
        columns: (units, count) int64, the features that each unit owns.
        moments: Of the layer's input, about the mean where an intercept is fitted; None for
            methods that do not look at data.
    """

    weight: Tensor
    columns: Tensor
    moments: Moments | None = None


@dataclass(frozen=True)
class Path:
    """An order of removal.

    Attributes:
        order: (steps,) int64, units in the order in which they leave.
        errors: (steps,) float64, what each removal adds to the damped reconstruction error, as a share of the
            variance of the consumers' outputs, averaged over consumers; NaN where the method does not know.
        final: The undamped reconstruction error after the last step, in the same unit.
        refits: The consumers' weights at any cut; None where they were not asked for.
    """

    order: Tensor
    errors: Tensor
    final: float
    refits: Refits | None = field(default=None, repr=False)

    def error(self, count: int) -> float:
        """The reconstruction error after ``count`` removals: undamped after all, or where there are refits."""
        if count == len(self.errors) and self.refits is None:
            return self.final
        damped = float(self.errors[:count].sum())
        return damped if self.refits is None else max(damped - self.refits.penalty(count), 0.0)

    def removed(self, count: int) -> Tensor:
        """The first ``count`` units of the order, sorted."""
        return self.order[:count].sort().values
