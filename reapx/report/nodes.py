"""Pictures of nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def write_histogram(path: str | Path, values: Mapping[str, Tensor], limits: Mapping[str, float]) -> None:
    """Not drawn yet."""
    raise NotImplementedError
