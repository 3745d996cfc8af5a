"""Which channels of a group leave, and in which order.

``SELECTIONS`` lists the methods with a line on each. All of them see the same second moments of the consumers' inputs,
and the refits after removal are the same least squares whatever the method.
"""

from __future__ import annotations

from .methods import BLIND, SELECTIONS
from .path import Path
from .paths import find_paths

__all__ = ["BLIND", "SELECTIONS", "Path", "find_paths"]
