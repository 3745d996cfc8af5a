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
from .sparsity import NodeMonitor, adam_l2, group_lasso, group_sparse
from .storage import load

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Behaviors",
    "BudgetError",
    "CalibrationWarning",
    "CaptureError",
    "CheckpointError",
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
    "adam_l2",
    "behaviors",
    "group_lasso",
    "group_sparse",
    "inspect",
    "load",
    "plan",
    "prune",
    "serialize",
    "write_report",
]
