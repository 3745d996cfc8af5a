"""The methods of selection, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..capture.graph import Graph
from ..errors import InputError
from ..groups.channel_groups import Group
from ..moments.moments import Moments
from .dpp import dpp_order
from .lasso import lasso_order
from .magnitude import magnitude_order, output_norm_order
from .nu import Unification
from .paths.consumers import MeasuredConsumer
from .paths.weight_changes import WeightChanges
from .thinet import ChannelScales, thinet_order

Selection = Literal["reap", "nu", "lasso", "thinet", "dpp", "output_norm", "magnitude"]
"""Name of a method of selection."""

SelectionRule = Callable[[Group, Sequence[Moments], Sequence[Tensor]], Any]
"""A method that the caller gives: ``(group, moments, weights) -> scores or order``; see :func:`order_by_rule`."""

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
    selection: str | SelectionRule, graph: Graph, group: Group, consumers: Sequence[MeasuredConsumer], steps: int
) -> SelectedUnits:
    """The units of one group that leave by one of the methods in ``SELECTIONS``, or by the caller's function.

    Args:
        selection: Name of the method, or the caller's function.
        graph: The captured network.
        group: The group.
        consumers: Its consumers, with moments unless the method is one of ``BLIND``.
        steps: Number of units that leave.
    """
    if not isinstance(selection, str):
        return SelectedUnits(order_by_rule(selection, group, consumers, steps))
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


def selection_name(selection: str | SelectionRule) -> str:
    """Name of a method in texts; the name of a function."""
    return selection if isinstance(selection, str) else str(getattr(selection, "__name__", type(selection).__name__))


def order_by_rule(rule: SelectionRule, group: Group, consumers: Sequence[MeasuredConsumer], steps: int) -> Tensor:
    """(steps,) int64 units in the order in which they leave by the caller's function.

    The function is called with the group and, for each of ``group.consumers``, the moments of its input (about the mean
    where an intercept is fitted) and its weight (outputs, features) float64, rows scaled by the norm that follows. It
    returns floating-point scores of all units, of which the smallest leave first; or integers, the units in the order
    in which they leave, of which the last may be omitted.

    Raises:
        InputError: it returns neither; the message names the function and the group.
    """
    given = rule(group, [own.known_moments for own in consumers], [own.weight for own in consumers])
    where = f"selection={selection_name(rule)} for {group.name}, which has {group.size} units"
    try:
        found = torch.as_tensor(given).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}, returned a {type(given).__name__}: return scores or an order, a tensor") from error
    if found.is_floating_point():
        if found.shape != (group.size,) or not bool(torch.isfinite(found).all()):
            raise InputError(
                f"{where}, returned scores of shape {tuple(found.shape)}: return a finite number for each unit"
            )
        return found.argsort(stable=True)[:steps]
    order = found.to(torch.int64)
    inside = order.dim() == 1 and bool(((order >= 0) & (order < group.size)).all())
    if found.dtype == torch.bool or not inside or len(set(order.tolist())) < len(order) or len(order) < steps:
        raise InputError(
            f"{where}, returned an order of shape {tuple(order.shape)} and dtype {found.dtype}: return at "
            f"least {steps} different units, from 0 to {group.size - 1}; scores must be floating point"
        )
    return order[:steps]
