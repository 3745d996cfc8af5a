"""Nodes that training drives to zero: an optimiser and penalties that do, a monitor, and their removal."""

from .compaction import compact, zero_nodes
from .monitor import NodeMonitor
from .nodes import Compacted, ZeroNodes
from .optimizer import adam_l2
from .penalties import group_lasso, group_sparse

__all__ = [
    "Compacted",
    "NodeMonitor",
    "ZeroNodes",
    "adam_l2",
    "compact",
    "group_lasso",
    "group_sparse",
    "zero_nodes",
]
