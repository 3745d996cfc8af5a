"""Biorthogonal basis and path against the right-looking form in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import path_parts
import problems
import torch
from baselines import inverse_of, right_looking
from peak import Amount
from problems import Problem
from rows import Row
from timing import Target, interleaved

CASES = {"conv": (512, 9, 512, 256), "linear": (3072, 1, 768, 1536)}
LARGE = {"linear": (11008, 1, 4096, 5504)}
"""On a GPU, in parts: from the basis to the refitted weights."""
QUICK = {"conv": (6, 9, 4, 3), "linear": (40, 1, 8, 20)}
TIMED_STEPS = 24  # of the form that copies P at every step: all steps cost the same


def rows(target: Target, quick: bool) -> list[Row]:
    """Two rows for each case, against P = P - ... and against updates in place; on a GPU also the parts."""
    result = []
    rounds = 1 if quick else 5
    for name, (units, taps, outputs, steps) in (QUICK if quick else CASES).items():
        problem = problems.make(units, taps, outputs, target)
        case = f"{name} {units} of {taps}, M {outputs}, remove {steps}"
        (ours,) = interleaved([lambda p=problem, s=steps: problems.select(p, s)], rounds, target)
        amount = Amount(float64=problems.select_flops(problem, steps) / 1e9)
        _torch(problem, 1, in_place=True)
        start = target.now()
        order, errors = _torch(problem, steps, in_place=True)
        in_place = target.now() - start
        path_parts.check(problems.select(problem, steps), (order, errors), len(problem.gram))
        few = min(steps, TIMED_STEPS)
        plain = _extrapolated(problem, few, steps, target)
        against = "torch right-looking"
        result.append(Row("basis + path", case, target, ours, f"{against}, P = P - ...", plain, amount, few < steps))
        result.append(Row("basis + path", case, target, ours, f"{against}, in place", in_place, amount))
        if target.cuda or quick:
            result += path_parts.rows(case, problem, steps, target, rounds)
    for name, (units, taps, outputs, steps) in LARGE.items() if target.cuda and not quick else ():
        problem = problems.make(units, taps, outputs, target)
        case = f"{name} {units} of {taps}, M {outputs}, remove {steps}"
        result += path_parts.rows(case, problem, steps, target, 3)
    return result


def _torch(problem: Problem, steps: int, *, in_place: bool) -> tuple[torch.Tensor, torch.Tensor]:
    inverse = inverse_of(problem.gram, problem.ridge)
    return right_looking(inverse, problem.weight, problem.columns, steps, in_place=in_place)


def _extrapolated(problem: Problem, few: int, steps: int, target: Target) -> float:
    """Seconds of all steps from those of a few; the inverse counts once."""

    def call(count: int) -> Callable[[], object]:
        return lambda: _torch(problem, count, in_place=False)

    if few == steps:
        return interleaved([call(steps)], 1, target)[0]
    inverse, both = interleaved([call(0), call(few)], 3, target)
    return inverse + (both - inverse) * steps / few
