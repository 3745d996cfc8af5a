"""Error curves: what each group's pruning does to the network's outputs, at every width, from a few measured widths.

Between measured widths the curve follows the group's own path, whose reconstruction error is known exactly after each
removal: errors at the outputs are taken as a power of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Curve = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ErrorCurve:
    """The error at the network's outputs as one group loses units.

    Attributes:
        errors: (size + 1,) float64 after 0, 1, ..., size removals; not falling.
        measured: (removals, error) of the widths that were run.
    """

    errors: Curve
    measured: tuple[tuple[int, float], ...]

    @property
    def by_width(self) -> Curve:
        """(size + 1,) errors at widths 0, 1, ..., size."""
        return self.errors[::-1]


def fit_curve(steps: Curve, measured: Sequence[tuple[int, float]], start: int = 0) -> ErrorCurve:
    """The curve through measured errors that follows a path's reconstruction errors.

    With E the reconstruction error added since ``start``, log error is linear in log E between two measured points, and
    proportional to E before the first and after the last.

    Args:
        steps: (size,) float64, what each removal adds to the reconstruction error, not negative.
        measured: (removals, error), removals beyond ``start``.
        start: Removals at which the curve is zero, and before.
    """
    path = np.concatenate([[0.0], np.cumsum(steps)])
    path = np.maximum(path - path[start], 0.0)
    points = sorted((count, error) for count, error in measured if path[count] > 0 and error > 0)
    if not points:
        return ErrorCurve(path * 0.0, tuple(measured))
    tiny = np.finfo(np.float64).tiny
    at = np.log([path[count] for count, _ in points])
    values = np.log([error for _, error in points])
    position = np.log(np.maximum(path, tiny))
    inside = np.interp(position, at, values)
    beyond = np.minimum(position - at[0], 0.0) + np.maximum(position - at[-1], 0.0)
    errors = np.where(path > 0, np.exp(inside + beyond), 0.0)
    return ErrorCurve(np.maximum.accumulate(errors), tuple(measured))
