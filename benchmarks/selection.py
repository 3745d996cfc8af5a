"""Selection against the loop that defines it: delete each candidate, refit, keep the best."""

from __future__ import annotations

import problems
from baselines import naive_loop, naive_seconds
from peak import Amount
from rows import Row
from timing import Target, interleaved

SIZES = [64, 128, 512]
QUICK = [6]
FULL = 64  # channels up to which the naive loop runs to its end


def rows(target: Target, quick: bool) -> list[Row]:
    """One row for each number of channels of a 3x3 convolution, half of them removed."""
    return [_reap(channels, target, quick) for channels in (QUICK if quick else SIZES)]


def _reap(channels: int, target: Target, quick: bool) -> Row:
    problem = problems.make(channels, 9, channels, target)
    steps = channels // 2
    (ours,) = interleaved([lambda: problems.select(problem, steps)], 2 if quick else 7, target)
    gram = problem.damped
    full = channels <= FULL
    if full:
        start = target.now()
        order, errors = naive_loop(gram, problem.weight, problem.columns, steps)
        naive = target.now() - start
        own_order, own_errors = problems.select(problem, steps)
        gap = float((own_errors - own_errors.new_tensor(errors)).abs().max() / max(errors))
        if own_order.tolist() != order or gap > 1e-8:
            raise AssertionError(f"the path differs from the naive loop's (errors by {gap:.1e})")
        print(f"order as the naive loop's, {channels} channels, errors to {gap:.0e}")
    else:
        naive = naive_seconds(gram, problem.weight, problem.columns, steps, 6 if channels < 256 else 4, target)
    amount = Amount(float64=problems.select_flops(problem, steps) / 1e9)
    case = f"C = {channels}, k = 3, remove {steps}"
    return Row("selection", case, target, ours, "naive loop in torch", naive, amount, not full)
