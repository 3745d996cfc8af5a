"""Nodes that training drives to zero: an optimiser and penalties that do, a monitor, and their removal."""

from .optimizer import adam_l2
from .penalties import group_lasso, group_sparse

__all__ = ["adam_l2", "group_lasso", "group_sparse"]
