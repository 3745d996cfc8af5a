"""Biorthogonal basis and path against the right-looking form in plain torch."""

from __future__ import annotations

import time
from collections.abc import Callable

import problems
import torch
from baselines import right_looking
from peak import Amount
from problems import Problem
from rows import Row
from timing import interleaved

CASES = {"conv": (512, 9, 512, 256), "linear": (3072, 1, 768, 1536)}
QUICK = {"conv": (6, 9, 4, 3), "linear": (40, 1, 8, 20)}
TIMED_STEPS = 24  # of the form that copies P at every step: all steps cost the same


def rows(threads: int, quick: bool) -> list[Row]:
    """Two rows for each case: against P = P - ..., and against updates in place."""
    result = []
    for name, (units, taps, outputs, steps) in (QUICK if quick else CASES).items():
        problem = problems.make(units, taps, outputs)
        case = f"{name} {units} of {taps}, M {outputs}, remove {steps}"
        (ours,) = interleaved([lambda p=problem, s=steps: problems.select(p, s)], 1 if quick else 5)
        amount = Amount(float64=problems.select_flops(problem, steps) / 1e9)
        _torch(problem, 1, in_place=True)
        start = time.perf_counter()
        order, errors = _torch(problem, steps, in_place=True)
        in_place = time.perf_counter() - start
        _check(problem, steps, order, errors)
        few = min(steps, TIMED_STEPS)
        plain = _extrapolated(problem, few, steps)
        against = "torch right-looking"
        result.append(Row("basis + path", case, threads, ours, f"{against}, P = P - ...", plain, amount, few < steps))
        result.append(Row("basis + path", case, threads, ours, f"{against}, in place", in_place, amount))
    return result


def _torch(problem: Problem, steps: int, *, in_place: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return right_looking(problem.gram, problem.ridge, problem.weight, problem.columns, steps, in_place=in_place)


def _extrapolated(problem: Problem, few: int, steps: int) -> float:
    """Seconds of all steps from those of a few; the inverse counts once."""

    def call(count: int) -> Callable[[], object]:
        return lambda: _torch(problem, count, in_place=False)

    if few == steps:
        return interleaved([call(steps)], 1)[0]
    inverse, both = interleaved([call(0), call(few)], 3)
    return inverse + (both - inverse) * steps / few


def _check(problem: Problem, steps: int, order: torch.Tensor, errors: torch.Tensor) -> None:
    own_order, own_errors = problems.select(problem, steps)
    if not torch.equal(own_order, order):
        raise AssertionError("the order differs from the right-looking form's")
    gap = float((own_errors - errors).abs().max() / errors.max())
    if gap > 1e-8:
        raise AssertionError(f"errors differ by {gap:.1e}")
    print(f"order as the right-looking form's, D = {len(problem.gram)}, errors to {gap:.0e}")
