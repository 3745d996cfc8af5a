"""Swap refinement: exchange removed units for kept ones while the reconstruction error falls.

A greedy path never takes a removal back. Here the state of a least-squares problem with kept columns R and
removed ones S is the principal pivot transform of [G B] on R::

    [ P_RR   -P_RR G_RS   -W_R ]        P_RR = G_RR⁻¹
    [ G_SR P_RR    H        g  ]        H = G_SS - G_SR P_RR G_RS,  g = B_S - G_SR W_R

so that for every unit c, with its diagonal block A_c and its outputs V_c, tr(V_cᵀ A_c⁻¹ V_c) is what removing it
costs (kept) or what taking it back gains (removed). Transforming a unit's block once more exchanges its side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._native import PathConsumer

_TRIES = 32
"""Removed units, in the order of their gains, that are tried before giving up."""

_REBUILD = 8
"""Exchanges after which the table is made anew, so that rounding does not add up."""


class _PivotTransform:
    """The transform of one consumer's problem."""

    def __init__(self, consumer: PathConsumer, removed: Tensor):
        self.columns, self.scale = consumer.columns, consumer.scale
        self.table = torch.cat([consumer.basis, -consumer.weight.T], 1)
        self.exchange(removed)

    def exchange(self, units: Tensor) -> None:
        """Bring units to the other side, (n,) int64."""
        rows = self.columns[units].flatten()
        if len(rows) == 0:
            return
        inverse = torch.linalg.inv(self.table[rows][:, rows])
        beside = self.table[:, rows] @ inverse
        own = self.table[rows]
        self.table.addmm_(beside, own, alpha=-1)
        self.table[:, rows] = beside
        self.table[rows] = -(inverse @ own)
        self.table[rows[:, None], rows] = inverse

    def scores(self, taken: int | None = None) -> Tensor:
        """(U,) float64; of all other units as if ``taken`` had changed sides."""
        columns, outputs = self.columns, self.table[:, len(self.table) :][self.columns]
        blocks = self.table[columns[:, :, None], columns[:, None, :]]
        if taken is not None:
            own = columns[taken]
            beside = self.table[:, own][columns] @ torch.linalg.inv(blocks[taken])
            blocks = blocks - beside @ self.table[own][:, columns].transpose(0, 1)
            outputs = outputs - beside @ outputs[taken]
            blocks[taken] = torch.eye(len(own), dtype=blocks.dtype, device=blocks.device)
        traces: Tensor = torch.linalg.solve(blocks, outputs @ outputs.mT).diagonal(dim1=1, dim2=2).sum(1)
        return self.scale * traces

    def weight(self) -> Tensor:
        """(M, D) weights of the columns; without meaning for those that are removed."""
        return -self.table[:, len(self.table) :].T


def swap_units(consumers: Sequence[PathConsumer], removed: Tensor, swaps: int) -> tuple[Tensor, list[Tensor]]:
    """Exchange units one by one: take the one back that gains most, remove the one that then costs least.

    The number of removed units stays. Every exchange lowers the damped reconstruction error, and the set that comes
    back is never worse than the one given: where rounding says otherwise, that one comes back. A try costs
    O(D q (q + M)), an exchange O(D q (D + M)).

    Args:
        consumers: Of one group: basis, weight, columns and scale are read.
        removed: (n,) int64 units.
        swaps: Stop after this many.

    Returns:
        The removed units (n,) int64, those that were removed before first; and each consumer's weights (M, D) float64,
        zero in removed columns.

    Source: exchange of variables as in stepwise regression (Efroymson, 1960), applied to REAP's reconstruction error.
    """
    states = [_PivotTransform(consumer, removed) for consumer in consumers]
    gone = removed.tolist()
    for made in range(1, swaps + 1):
        if not _swap(states, gone):
            break
        if made % _REBUILD == 0:
            states = [_PivotTransform(consumer, torch.tensor(gone)) for consumer in consumers]
    chosen = torch.tensor(gone, dtype=torch.int64)
    if not _error(consumers, chosen) < _error(consumers, removed):
        chosen = removed
    weights = []
    for consumer in consumers:
        state = _PivotTransform(consumer, chosen)
        weight = state.weight()
        weight[:, state.columns[chosen].flatten()] = 0.0
        weights.append(weight)
    return chosen, weights


def _error(consumers: Sequence[PathConsumer], removed: Tensor) -> float:
    """Σ_j α_j tr(W_Sᵀ P_SS⁻¹ W_S): the damped error of a set, from scratch."""
    total = 0.0
    for consumer in consumers:
        rows = consumer.columns[removed].flatten()
        own = consumer.weight[:, rows]
        total += consumer.scale * float((torch.linalg.solve(consumer.basis[rows][:, rows], own.T).T * own).sum())
    return total


def _swap(states: list[_PivotTransform], gone: list[int]) -> bool:
    """Make one exchange, in ``gone`` too; False when none of the most promising lowers the error."""
    gains = _scores(states)[gone]
    for index in gains.argsort(descending=True, stable=True)[:_TRIES].tolist():
        unit = gone[index]
        costs = _scores(states, unit)
        costs[gone] = torch.inf
        costs[~torch.isfinite(costs)] = torch.inf
        cheapest = int(costs.argmin())
        # The margin keeps rounding from exchanging twins for ever.
        if float(costs[cheapest]) < (1 - 1e-9) * float(gains[index]):
            for state in states:
                state.exchange(torch.tensor([unit]))
                state.exchange(torch.tensor([cheapest]))
            del gone[index]
            gone.append(cheapest)
            return True
    return False


def _scores(states: list[_PivotTransform], taken: int | None = None) -> Tensor:
    return torch.stack([state.scores(taken) for state in states]).sum(0).cpu()
