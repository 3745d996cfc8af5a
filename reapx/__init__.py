"""Channel pruning with least-squares reconstruction for trained PyTorch networks."""

from .allocation import ErrorCurve, TradeoffPoint
from .behavior import Behaviors, behaviors
from .budget import MACs, Params
from .errors import (
    BackendError,
    BudgetError,
    CalibrationWarning,
    CaptureError,
    CheckpointError,
    CompactionWarning,
    InputError,
    NumericalError,
    ProofError,
    ReapxError,
)
from .inspection import Inspection, inspect
from .latency import Latency
from .pipeline import plan, prune
from .plan import Plan, Result
from .report.html import write_report
from .serial import Serialized, serialize
from .sparsity import (
    Compacted,
    NodeMonitor,
    ZeroNodes,
    adam_l2,
    compact,
    group_lasso,
    group_sparse,
    zero_nodes,
)
from .storage import load

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Behaviors",
    "BudgetError",
    "CalibrationWarning",
    "CaptureError",
    "CheckpointError",
    "Compacted",
    "CompactionWarning",
    "ErrorCurve",
    "InputError",
    "Inspection",
    "Latency",
    "MACs",
    "NodeMonitor",
    "NumericalError",
    "Params",
    "Plan",
    "ProofError",
    "ReapxError",
    "Result",
    "Serialized",
    "TradeoffPoint",
    "ZeroNodes",
    "adam_l2",
    "behaviors",
    "compact",
    "group_lasso",
    "group_sparse",
    "inspect",
    "load",
    "plan",
    "prune",
    "serialize",
    "write_report",
    "zero_nodes",
]
