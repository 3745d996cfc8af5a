"""Error curves: the error at the network's outputs at every width of a group, from a few measured widths.

The group's path has an exact reconstruction error after each removal. Between two measured widths, the error at the
outputs is modelled as a power of this reconstruction error.
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
        errors: (size + 1,) float64 after 0, 1, ..., size removals; never decreasing.
        measured: (removals, error) of the measured widths.
    """

    errors: Curve
    measured: tuple[tuple[int, float], ...]

    @property
    def by_width(self) -> Curve:
        """(size + 1,) errors at widths 0, 1, ..., size."""
        return self.errors[::-1]


def fit_curve(steps: Curve, measured: Sequence[tuple[int, float]], start: int = 0) -> ErrorCurve:
    """Interpolate measured errors along a path's reconstruction errors.

    Let E be the reconstruction error added since ``start``. Between two measured points log error is linear in log E.
    Before the first and after the last point the error is proportional to E.

    Args:
        steps: (size,) float64, increase of the reconstruction error at each removal, not negative.
        measured: (removals, error) pairs with more removals than ``start``.
        start: Number of removals up to which the curve is zero.
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
