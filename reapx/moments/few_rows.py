"""The warning that a fit has fewer rows than features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ..calibration.images import Images
from ..calibration.sample import EVERY
from ..errors import CalibrationWarning

Rows = tuple[str, int, int]
"""A layer's name, the rows that its fit has, and its features."""


def warn_few_rows(layers: Sequence[Rows], images: Images, stacklevel: int) -> None:
    """Warn where a Gram matrix is singular for want of rows, and say how many images would do.

    Args:
        layers: What is fitted.
        images: Those that it is fitted to, a part of the calibration images.
        stacklevel: As for ``warnings.warn``, counted from the caller.

    Warns:
        CalibrationWarning: a layer has fewer rows than features.
    """
    few = [(name, rows, features) for name, rows, features in layers if rows < features]
    if not few:
        return
    texts = [f"{name} ({rows} rows, {features} features)" for name, rows, features in few[:3]]
    more = f" and {len(few) - 3} more" if len(few) > 3 else ""
    fitted = max(-(-features * images.count // max(rows, 1)) for _, rows, features in few)
    enough = -(-fitted * EVERY // (EVERY - 1))
    warnings.warn(
        f"the {images.count} images that are fitted give fewer rows than features at {', '.join(texts)}{more}: the "
        f"Gram matrix is singular and only damping carries the fit; {enough} images in all would do",
        CalibrationWarning,
        stacklevel=stacklevel + 1,
    )
