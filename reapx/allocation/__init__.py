"""How many channels each group keeps."""

from __future__ import annotations

from .uniform import uniform

ALLOCATIONS = ("uniform",)

__all__ = ["ALLOCATIONS", "uniform"]
