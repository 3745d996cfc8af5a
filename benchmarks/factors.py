"""Bases and refits against torch's Cholesky and LU, on a GPU cuSOLVER's: one large system, many small ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import problems
import torch
from baselines import inverse_of, refitted
from peak import Amount
from rows import Row
from timing import Target, interleaved
from torch import Tensor

from reapx import _native
from reapx._native import SolveTask

SIZES = {"one": (1, 4608, 512), "many": (64, 576, 64)}
"""Systems, features, outputs: all small ones have one size, so that torch can take them as a batch."""
QUICK = {"one": (1, 30, 5), "many": (3, 12, 4)}
TOLERANCE = 1e-8


def rows(target: Target, quick: bool) -> list[Row]:
    """A basis and a refit of each size; the refits keep every feature."""
    result = []
    for count, features, outputs in (QUICK if quick else SIZES).values():
        problem = problems.make(features, 1, outputs, target)
        grams = torch.stack([problem.gram * (1 + 0.01 * k) for k in range(count)])
        crosses = problem.weight @ grams
        case = f"{count} x D {features}"
        result += _bases(case, grams, problem.ridge, target, 2 if quick else 7)
        result += _refits(f"{case}, M {outputs}", grams, crosses, problem.ridge, target, 2 if quick else 7)
    return result


def _bases(case: str, grams: Tensor, ridge: float, target: Target, rounds: int) -> list[Row]:
    bases = torch.empty_like(grams)
    split = list(grams), list(bases)

    def ours() -> Tensor:
        failed = _native.basis_compute(split[0], [ridge] * len(grams), split[1])
        return _checked(bases, failed)

    flops = len(grams) * problems.basis_flops(grams.shape[1])
    theirs = {"torch cholesky_ex, cholesky_inverse": lambda: inverse_of(grams, ridge)}
    return _rows("basis", case, ours, theirs, flops, target, rounds)


def _refits(case: str, grams: Tensor, crosses: Tensor, ridge: float, target: Target, rounds: int) -> list[Row]:
    weights = torch.empty_like(crosses)
    kept = torch.arange(grams.shape[1], device=grams.device)
    tasks = [SolveTask(*each[:2], kept, ridge, None, each[2]) for each in zip(grams, crosses, weights, strict=True)]

    def ours() -> Tensor:
        return _checked(weights, _native.batch_solve(tasks))

    def general() -> Tensor:
        damped = grams.clone()
        damped.diagonal(dim1=-2, dim2=-1).add_(ridge)
        return torch.linalg.solve_ex(damped, crosses, left=False)[0]

    flops = len(grams) * problems.refit_flops(*reversed(crosses.shape[1:]))
    theirs = {
        "torch cholesky_ex, cholesky_solve": lambda: refitted(grams, crosses, ridge),
        "torch linalg.solve_ex": general,
    }
    return _rows("refit", case, ours, theirs, flops, target, rounds)


def _checked(result: Tensor, failed: Sequence[int]) -> Tensor:
    if any(pivot >= 0 for pivot in failed):
        raise AssertionError(f"pivots failed: {failed}")
    return result


def _rows(
    work: str,
    case: str,
    ours: Callable[[], Tensor],
    theirs: dict[str, Callable[[], Tensor]],
    flops: float,
    target: Target,
    rounds: int,
) -> list[Row]:
    """One for each way in torch, all of which have to give what ours does."""
    own = ours()
    for name, call in theirs.items():
        gap = float((own - call()).norm() / own.norm())
        if gap > TOLERANCE:
            raise AssertionError(f"{work} {case} differs from {name}'s by {gap:.1e}")
    seconds, *others = interleaved([ours, *theirs.values()], rounds, target)
    amount = Amount(float64=flops / 1e9)
    return [Row(work, case, target, seconds, name, other, amount) for name, other in zip(theirs, others, strict=True)]
