"""Channel pruning with least-squares reconstruction for trained PyTorch networks."""

from . import kernels
from .allocation.curves import ErrorCurve
from .allocation.descent import TradeoffPoint
from .behavior.behaviors import Behaviors, behaviors
from .costs.budget import MACs, Params
from .costs.latency import Latency
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
from .inspection.inspection import Inspection, inspect
from .planning.calls import plan, prune
from .planning.plan import Plan
from .planning.result import Result
from .planning.settings import PlanSettings
from .report.page import write_report
from .serial.result import Serialized, serialize
from .sparsity.compaction.compact import compact, zero_nodes
from .sparsity.compaction.zero_nodes import Compacted, ZeroNodes
from .sparsity.training.monitor import NodeMonitor
from .sparsity.training.optimizer import adam_l2
from .sparsity.training.penalties import group_lasso, group_sparse
from .surgery.optimizer_state import carry_state
from .surgery.storage import load

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
    "PlanSettings",
    "ProofError",
    "ReapxError",
    "Result",
    "Serialized",
    "TradeoffPoint",
    "ZeroNodes",
    "adam_l2",
    "behaviors",
    "carry_state",
    "compact",
    "group_lasso",
    "group_sparse",
    "inspect",
    "kernels",
    "load",
    "plan",
    "prune",
    "serialize",
    "write_report",
    "zero_nodes",
]
