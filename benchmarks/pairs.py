"""Neuro-unification: all ordered pairs of channels, then greedy merging, against torch."""

from __future__ import annotations

import problems
import torch
from peak import Amount
from problems import F64, Problem
from rows import Row
from timing import interleaved
from torch import Tensor

from reapx import _native
from reapx._native import PairConsumer, PairTask

CASES = [(256, 9, 256, 128), (2048, 1, 512, 1024)]
QUICK = [(6, 4, 3, 3)]


def rows(threads: int, quick: bool) -> list[Row]:
    """One row for each case; the share is that of the copy bandwidth, which one read of G would reach."""
    return [_row(case, threads, 1 if quick else 5) for case in (QUICK if quick else CASES)]


def _row(case: tuple[int, int, int, int], threads: int, rounds: int) -> Row:
    units, taps, outputs, steps = case
    problem = problems.make(units, taps, outputs)
    removed, errors = _ours(problem, steps)
    want_removed, want_errors = _torch(problem, steps)
    gap = float((errors - want_errors).abs().max() / want_errors.max())
    if not torch.equal(removed, want_removed) or gap > 1e-9:
        raise AssertionError(f"other pairs than torch's were unified (errors by {gap:.1e})")
    ours, theirs = interleaved([lambda: _ours(problem, steps), lambda: _torch(problem, steps)], rounds)
    amount = Amount(copy=problem.gram.nbytes / 1e9)
    name = f"{units} of {taps}, M {outputs}, unify {steps}"
    return Row("pair_scan", name, threads, ours, "torch einsum, greedy", theirs, amount)


def _ours(problem: Problem, steps: int) -> tuple[Tensor, Tensor]:
    consumer = PairConsumer(problem.gram, problem.weight.clone(), problem.columns, 1.0, torch.empty(steps, dtype=F64))
    removed, partner = torch.empty(steps, dtype=torch.int64), torch.empty(steps, dtype=torch.int64)
    task = PairTask([consumer], None, removed, partner, torch.empty(steps, dtype=F64))
    _native.pair_scan([task])
    return task.removed, task.errors


def _torch(problem: Problem, steps: int) -> tuple[Tensor, Tensor]:
    """The table by einsum; after each step the partner's row, and the least of the rows that it or q was part of."""
    units, taps = problem.columns.shape
    gram = problem.gram.view(units, taps, units, taps)
    blocks = torch.einsum("uaub->uab", gram)
    weight = problem.weight.clone().view(-1, units, taps)
    products = torch.einsum("mua,mub->uab", weight, weight)
    inner = torch.einsum("qab,qapb->qp", products, gram)
    norms = torch.einsum("qab,pab->qp", products, blocks)
    own = torch.einsum("qab,qab->q", products, blocks)
    table = (own[:, None] - inner**2 / norms).clamp(min=0)
    table.fill_diagonal_(torch.inf)
    least, partner = table.min(1)
    removed = torch.empty(steps, dtype=torch.int64)
    errors = torch.empty(steps, dtype=F64)
    for step in range(steps):
        q = int(least.argmin())
        p = int(partner[q])
        removed[step], errors[step] = q, table[q, p]
        gain = (products[q] * gram[q, :, p]).sum() / (products[q] * blocks[p]).sum()
        weight[:, p] += gain * weight[:, q]
        products[p] = weight[:, p].T @ weight[:, p]
        row = torch.einsum("ab,apb->p", products[p], gram[p])
        scale = torch.einsum("ab,pab->p", products[p], blocks)
        fresh = ((products[p] * blocks[p]).sum() - row**2 / scale).clamp(min=0)
        gone = torch.isinf(table[p])
        table[p] = torch.where(gone, torch.inf, fresh)
        table[q] = torch.inf
        table[:, q] = torch.inf
        least[q] = torch.inf
        stale = (partner == q).nonzero().flatten()
        rows = torch.cat([stale, torch.tensor([p])])
        least[rows], partner[rows] = table[rows].min(1)
    return removed, errors
