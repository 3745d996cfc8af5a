"""Neuro-unification: all ordered pairs of channels, then greedy merging, against torch."""

from __future__ import annotations

import problems
import torch
from peak import Amount
from problems import F64, Problem
from rows import Row
from timing import Target, interleaved
from torch import Tensor

from reapx import _native
from reapx._native import PairConsumer, PairTask

CASES = [(256, 9, 256, 128), (2048, 1, 512, 1024)]
QUICK = [(6, 4, 3, 3)]


def rows(target: Target, quick: bool) -> list[Row]:
    """One row for each case; its operations are those of the steps, on the units left."""
    return [_row(case, target, 1 if quick else 5) for case in (QUICK if quick else CASES)]


def _row(case: tuple[int, int, int, int], target: Target, rounds: int) -> Row:
    units, taps, outputs, steps = case
    problem = problems.make(units, taps, outputs, target)
    removed, errors = _ours(problem, steps)
    want_removed, want_errors = _torch(problem, steps)
    gap = float((errors - want_errors).abs().max() / want_errors.max())
    if not torch.equal(removed, want_removed) or gap > 1e-9:
        raise AssertionError(f"other pairs than torch's were unified (errors by {gap:.1e})")
    ours, theirs = interleaved([lambda: _ours(problem, steps), lambda: _torch(problem, steps)], rounds, target)
    left = units - torch.arange(1, steps, dtype=F64)
    amount = Amount(float64=2e-9 * taps**2 * float((left**2 + left * outputs).sum()))
    name = f"{units} of {taps}, M {outputs}, unify {steps}"
    return Row("pair_scan", name, target, ours, "torch einsum, greedy", theirs, amount)


def _ours(problem: Problem, steps: int) -> tuple[Tensor, Tensor]:
    gains, errors = (problem.gram.new_empty(steps) for _ in range(2))
    removed, partner = (problem.columns.new_empty(steps) for _ in range(2))
    consumer = PairConsumer(problem.gram, problem.weight.clone(), problem.columns, 1.0, gains)
    task = PairTask([consumer], None, removed, partner, errors)
    _native.pair_scan([task])
    return task.removed, task.errors


def _torch(problem: Problem, steps: int) -> tuple[Tensor, Tensor]:
    """The table by einsum; each step updates R = <W_q, (G Delta)_p> by a product, the partner's row, and all errors."""
    units, taps = problem.columns.shape
    gram = problem.gram.view(units, taps, units, taps)
    blocks = torch.einsum("uaub->uab", gram)
    weight = problem.weight.clone()
    unit = weight.view(-1, units, taps)
    products = torch.einsum("mua,mub->uab", unit, unit)
    inner = torch.einsum("qab,qapb->qp", products, gram)
    norms = torch.einsum("qab,pab->qp", products, blocks)
    overlaps = torch.zeros_like(inner)
    gone = gram.new_zeros(units)
    removed = problem.columns.new_empty(steps)
    errors = gram.new_empty(steps)
    left, table = torch.empty_like(inner), torch.empty_like(inner)
    for step in range(steps):
        torch.sub(inner, overlaps, out=left)
        torch.square(left, out=table).div_(norms)
        own = inner.diagonal() - 2 * overlaps.diagonal() + gone
        torch.sub(own[:, None], table, out=table).add_(gone).fill_diagonal_(torch.inf)
        q, p = divmod(int(table.argmin()), units)
        removed[step], errors[step] = q, table[q, p]
        gain = left[q, p] / norms[q, p]
        gone[q] = torch.inf
        leaving = unit[:, q].clone()
        unit[:, p] += gain * leaving
        unit[:, q] = 0.0
        overlaps[p] += gain * overlaps[q]
        shares = (weight.T @ leaving).view(units, -1)
        moves = (gain * gram[p] - gram[q]).permute(1, 2, 0).reshape(units, -1)
        overlaps.addmm_(shares, moves.T)
        products[p] = unit[:, p].T @ unit[:, p]
        inner[p] = torch.einsum("ab,apb->p", products[p], gram[p])
        norms[p] = torch.einsum("ab,pab->p", products[p], blocks)
    return removed, errors
