"""Which channels of a group leave, and in which order."""

from __future__ import annotations

from .path import Path
from .paths import SELECTIONS, find_paths

__all__ = ["SELECTIONS", "Path", "find_paths"]
