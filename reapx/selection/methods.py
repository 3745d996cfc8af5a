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
"""Name -> what leaves, in a line."""

BLIND = ("output_norm", "magnitude")
"""Methods that look at no data."""


@dataclass(frozen=True)
class SelectedUnits:
    """What a method says: the order (steps,) int64 in which units leave (None for REAP, which finds it by solving),
    and what the method itself does with the weights that stay."""

    order: Tensor | None = None
    own_changes: WeightChanges | None = None


def choose(
    selection: str, graph: Graph, group: Group, consumers: Sequence[MeasuredConsumer], steps: int
) -> SelectedUnits:
    """One group's order by any of ``SELECTIONS``."""
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
