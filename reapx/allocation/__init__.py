"""How many channels each group keeps."""

from __future__ import annotations

from .choices import Rules, refusal, smallest
from .curves import ErrorCurve
from .outputs import OUTPUT_ERRORS, scored_outputs
from .pro import POINTS, Measurement, Tradeoff, measure_tradeoff
from .tradeoff import TradeoffPoint
from .uniform import uniform

ALLOCATIONS = ("pro", "uniform")

__all__ = [
    "ALLOCATIONS",
    "OUTPUT_ERRORS",
    "POINTS",
    "ErrorCurve",
    "Measurement",
    "Rules",
    "Tradeoff",
    "TradeoffPoint",
    "measure_tradeoff",
    "refusal",
    "scored_outputs",
    "smallest",
    "uniform",
]
