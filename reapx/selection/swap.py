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
from dataclasses import dataclass

import torch
from torch import Tensor

_TRIES = 32
"""Removed units, in the order of their gains, that are tried before giving up."""


@dataclass
class Problem:
    """One consumer, as the path saw it.

    Attributes:
        basis: (D, D) float64, the inverse of the damped Gram matrix.
        weight: (M, D) float64, full refitted weights.
        columns: (U, q) int64.
        scale: Share in the score.
    """

    basis: Tensor
    weight: Tensor
    columns: Tensor
    scale: float


class _State:
    """The transform of one consumer's problem; every column is kept at first."""

    def __init__(self, problem: Problem):
        self.table = torch.cat([problem.basis, -problem.weight.T], 1)
        self.columns, self.scale = problem.columns, problem.scale

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

    def scores(self) -> Tensor:
        """(U,) float64."""
        columns = self.columns
        blocks = self.table[columns[:, :, None], columns[:, None, :]]
        outputs = self.table[:, len(self.table) :][columns]
        traces: Tensor = torch.linalg.solve(blocks, outputs @ outputs.mT).diagonal(dim1=1, dim2=2).sum(1)
        return self.scale * traces

    def weight(self) -> Tensor:
        """(M, D) weights of the columns; without meaning for those that are removed."""
        return -self.table[:, len(self.table) :].T


def swap_units(problems: Sequence[Problem], removed: Tensor, swaps: int) -> tuple[Tensor, list[Tensor]]:
    """Exchange units one by one: take the one back that gains most, remove the one that then costs least.

    The number of removed units stays. Every exchange lowers the damped reconstruction error, so the set that comes
    back is never worse. Costs two updates of a (D, D + M) table per removed unit that is tried.

    Args:
        problems: All consumers of one group.
        removed: (n,) int64 units.
        swaps: Stop after this many.

    Returns:
        The removed units (n,) int64, those that were removed before first; and each consumer's weights (M, D) float64,
        zero in removed columns.

    Source: math of exchange as in Efroymson's stepwise regression; applied to the error of REAP's reconstruction.
    """
    states = [_State(problem) for problem in problems]
    for state in states:
        state.exchange(removed)
    gone = removed.tolist()
    for _ in range(swaps):
        if not _swap(states, gone):
            break
    weights = []
    for state in states:
        weight = state.weight()
        weight[:, state.columns[gone].flatten()] = 0.0
        weights.append(weight)
    return torch.tensor(gone, dtype=torch.int64), weights


def _swap(states: list[_State], gone: list[int]) -> bool:
    """Make one exchange, in ``gone`` too; False when none of the most promising lowers the error."""
    gains = _scores(states)[gone]
    for place in gains.argsort(descending=True, stable=True)[:_TRIES].tolist():
        unit = gone[place]
        _exchange(states, unit)
        costs = _scores(states)
        costs[[other for other in gone if other != unit]] = torch.inf
        costs[~torch.isfinite(costs)] = torch.inf
        cheapest = int(costs.argmin())
        # The margin keeps rounding from exchanging twins for ever.
        if float(costs[cheapest]) < (1 - 1e-9) * float(gains[place]):
            _exchange(states, cheapest)
            del gone[place]
            gone.append(cheapest)
            return True
        _exchange(states, unit)
    return False


def _scores(states: list[_State]) -> Tensor:
    return torch.stack([state.scores() for state in states]).sum(0)


def _exchange(states: list[_State], unit: int) -> None:
    for state in states:
        state.exchange(torch.tensor([unit]))
