"""Nodes that training drives to zero: an optimiser and penalties that do, a monitor, and their removal."""

from .monitor import NodeMonitor
from .optimizer import adam_l2
from .penalties import group_lasso, group_sparse

__all__ = ["NodeMonitor", "adam_l2", "group_lasso", "group_sparse"]
