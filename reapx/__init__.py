"""Channel pruning with least-squares reconstruction for trained PyTorch networks."""

from . import kernels
from .allocation.curves import ErrorCurve
from .allocation.descent import TradeoffPoint
from .behavior.behaviors import Behaviors, behaviors
from .capture.layers import Layer
from .costs.budget import Budget, Costs, MACs, Params, Size
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
from .groups.channel_groups import Consumer, Frozen, Group
from .groups.rules.operator_rules import register_operator
from .inspection.inspection import Inspection, inspect
from .moments.moments import Moments
from .planning.apply import Result
from .planning.calls import plan, prune
from .planning.group_plan import GroupPlan
from .planning.pipeline import load_plan
from .planning.plan import Plan
from .planning.settings import PlanSettings
from .planning.steps import find_path, measure, measured_consumers, time_layers
from .reconstruction.layer_refit import LayerRefit
from .refinement.norms import renew_norms
from .refinement.refine import Refinement, refine
from .report.page import write_report
from .selection.methods import SELECTIONS
from .selection.paths.consumers import MeasuredConsumer
from .selection.paths.path import Path
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
    "SELECTIONS",
    "BackendError",
    "Behaviors",
    "Budget",
    "BudgetError",
    "CalibrationWarning",
    "CaptureError",
    "CheckpointError",
    "Compacted",
    "CompactionWarning",
    "Consumer",
    "Costs",
    "ErrorCurve",
    "Frozen",
    "Group",
    "GroupPlan",
    "InputError",
    "Inspection",
    "Latency",
    "Layer",
    "LayerRefit",
    "MACs",
    "MeasuredConsumer",
    "Moments",
    "NodeMonitor",
    "NumericalError",
    "Params",
    "Path",
    "Plan",
    "PlanSettings",
    "ProofError",
    "ReapxError",
    "Refinement",
    "Result",
    "Serialized",
    "Size",
    "TradeoffPoint",
    "ZeroNodes",
    "adam_l2",
    "behaviors",
    "carry_state",
    "compact",
    "find_path",
    "group_lasso",
    "group_sparse",
    "inspect",
    "kernels",
    "load",
    "load_plan",
    "measure",
    "measured_consumers",
    "plan",
    "prune",
    "refine",
    "register_operator",
    "renew_norms",
    "serialize",
    "time_layers",
    "write_report",
    "zero_nodes",
]
