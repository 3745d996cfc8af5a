"""The methods of selection, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..capture.graph import Graph
from ..groups.channel_groups import Group
from .dpp import dpp_order
from .lasso import lasso_order
from .magnitude import magnitude_order, output_norm_order
from .nu import Unification
from .paths.consumers import MeasuredConsumer
from .paths.weight_changes import WeightChanges
from .thinet import ChannelScales, thinet_order

Selection = Literal["reap", "nu", "lasso", "thinet", "dpp", "output_norm", "magnitude"]
"""Which channels leave."""

SELECTIONS: Mapping[str, str] = {
    "reap": "each the one that costs least after reconstruction; the one to take",
    "nu": "what another channel emulates best is folded into it, also without reconstruction",
    "lasso": "CP: what a LASSO regression of the next layer drops; needs scikit-learn",
    "thinet": "ThiNet: least contribution to the next layer; without reconstruction, the others are scaled",
    "dpp": "DPP: a sample of channels that behave differently stays; random where widths are uniform",
    "output_norm": "OP: smallest outgoing weights; looks at no data",
    "magnitude": "smallest incoming weights; looks at no data",
}
"""Name -> one line on which channels leave."""

BLIND = ("output_norm", "magnitude")
"""Methods that use no data."""


@dataclass(frozen=True)
class SelectedUnits:
    """The units that a method selects.

    Attributes:
        order: (steps,) int64 units, the first to leave first; None for REAP, which finds the order by solving.
        own_changes: The method's own change of the remaining weights; None for methods that only choose units.
    """

    order: Tensor | None = None
    own_changes: WeightChanges | None = None


def choose(
    selection: str, graph: Graph, group: Group, consumers: Sequence[MeasuredConsumer], steps: int
) -> SelectedUnits:
    """The units of one group that leave by one of the methods in ``SELECTIONS``.

    Args:
        selection: Name of the method.
        graph: The captured network.
        group: The group.
        consumers: Its consumers, with moments unless the method is one of ``BLIND``.
        steps: Number of units that leave.
    """
    if selection == "nu":
        unified = Unification(graph, group, consumers, steps)
        return SelectedUnits(unified.order, unified)
    if selection == "thinet":
        order = thinet_order(consumers, steps)
        return SelectedUnits(order, ChannelScales(graph, group, consumers, order))
    if selection == "lasso":
        return SelectedUnits(lasso_order(consumers, steps))
    if selection == "dpp":
        return SelectedUnits(dpp_order(consumers, steps))
    if selection == "output_norm":
        return SelectedUnits(output_norm_order(consumers, steps))
    if selection == "magnitude":
        return SelectedUnits(magnitude_order(graph, group, steps))
    return SelectedUnits()
