"""Swap refinement: exchange removed units for kept ones while the reconstruction error falls.

A greedy path never takes a removal back. Here a least-squares problem with kept columns R and removed columns S is
stored as the principal pivot transform of [G B] on R::

    [ P_RR   -P_RR G_RS   -W_R ]        P_RR = G_RR⁻¹
    [ G_SR P_RR    H        g  ]        H = G_SS - G_SR P_RR G_RS,  g = B_S - G_SR W_R

For a unit c with diagonal block A_c and last columns V_c, tr(V_cᵀ A_c⁻¹ V_c) is the cost of removing it if it is kept,
and the gain of taking it back if it is removed. Pivoting on the block of c moves it to the other side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._native import PathConsumer

_TRIES = 32
"""Number of removed units, by descending gain, that are tried before the search ends."""

_REBUILD = 8
"""Number of exchanges after which the table is rebuilt, so that rounding errors do not accumulate."""


class _PivotTransform:
    """The principal pivot transform of one consumer's problem, (features, features + outputs) float64."""

    def __init__(self, consumer: PathConsumer, removed: Tensor):
        self.columns, self.scale = consumer.columns, consumer.scale
        self.table = torch.cat([consumer.basis, -consumer.weight.T], 1)
        self.exchange(removed)

    def exchange(self, units: Tensor) -> None:
        """Move units (n,) int64 to the other side: kept ones are removed, removed ones are kept."""
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
        """(U,) float64 cost or gain of every unit; with ``taken``, as if that unit had changed sides already."""
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
        """(M, D) weights; the columns of removed units are undefined."""
        return -self.table[:, len(self.table) :].T


def swap_units(consumers: Sequence[PathConsumer], removed: Tensor, swaps: int) -> tuple[Tensor, list[Tensor]]:
    """Exchange units one by one: take back the unit that gains most, then remove the one that costs least.

    The number of removed units stays the same. Every exchange lowers the damped reconstruction error. If rounding makes
    the refined set worse than the given one, the given one is returned. A trial takes O(D q (q + M)) operations, an
    exchange O(D q (D + M)).

    Args:
        consumers: All consumers of one group; basis, weight, columns and scale are read.
        removed: (n,) int64 units.
        swaps: Largest number of exchanges.

    Returns:
        The removed units (n,) int64, those of ``removed`` first; and each consumer's weights (M, D) float64, zero in
        the removed columns.

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
    """Σ_j α_j tr(W_Sᵀ P_SS⁻¹ W_S): the damped error of a set, computed without the transforms."""
    total = 0.0
    for consumer in consumers:
        rows = consumer.columns[removed].flatten()
        own = consumer.weight[:, rows]
        total += consumer.scale * float((torch.linalg.solve(consumer.basis[rows][:, rows], own.T).T * own).sum())
    return total


def _swap(states: list[_PivotTransform], gone: list[int]) -> bool:
    """Make one exchange in ``states`` and ``gone``; False when none of the ``_TRIES`` best lowers the error."""
    gains = _scores(states)[gone]
    for index in gains.argsort(descending=True, stable=True)[:_TRIES].tolist():
        unit = gone[index]
        costs = _scores(states, unit)
        costs[gone] = torch.inf
        costs[~torch.isfinite(costs)] = torch.inf
        cheapest = int(costs.argmin())
        # Without the margin, rounding could exchange two equal units for ever.
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
