"""The parts of a selection, one by one: basis, path, the weights at its end, and the refit on what stays."""

from __future__ import annotations

from collections.abc import Callable

import problems
import torch
from baselines import inverse_of, refitted, right_looking
from peak import Amount
from problems import Problem
from rows import Row
from timing import Target, interleaved
from torch import Tensor

from reapx import _native
from reapx._native import CutsTask, PathTask, SolveTask

Path = tuple[Tensor, Tensor]
ALL = "basis + path + refit"
AGAINST = {
    "basis": "torch cholesky_ex, cholesky_inverse",
    "path": "torch right-looking, in place",
    "weights": "torch addmm",
    "refit": "torch cholesky_ex, cholesky_solve",
    ALL: "torch, these three",
}


def rows(case: str, problem: Problem, steps: int, target: Target, rounds: int) -> list[Row]:
    """A row for each part, and one for basis, path and refit in one go; the refit solves the kept features' system."""
    cross = problem.weight @ problem.gram
    task = problems.path_task(problem, steps)
    looking = _right_looking(problem, problems.eliminate(task), target)
    bases = (lambda: problems.basis_of(problem), lambda: inverse_of(problem.gram, problem.ridge))
    refits = _refits(problem, cross, _kept(problem, task.order))
    _same(*(call() for call in refits))
    times = {
        "basis": interleaved(bases, rounds, target),
        "path": [*interleaved([lambda: _native.path_eliminate([task])], rounds, target), looking],
        "weights": interleaved(_cuts(problem, task), rounds, target),
        "refit": interleaved(refits, rounds, target),
    }

    def select_and_refit() -> None:
        order, _ = problems.select(problem, steps)
        _refits(problem, cross, _kept(problem, order))[0]()

    together = ("basis", "path", "refit")
    times[ALL] = [*interleaved([select_and_refit], rounds, target), sum(times[part][1] for part in together)]
    flops = _flops(problem, steps)
    flops[ALL] = sum(flops[part] for part in together)
    return [
        Row(part, case, target, own, AGAINST[part], theirs, Amount(float64=flops[part] / 1e9))
        for part, (own, theirs) in times.items()
    ]


def _flops(problem: Problem, steps: int) -> dict[str, float]:
    """What has to be done; the weights at the cut are those of the kept features."""
    features, outputs = len(problem.gram), len(problem.weight)
    gone = steps * problem.columns.shape[1]
    return {
        "basis": problems.basis_flops(features),
        "path": problems.path_flops(problem, steps),
        "weights": 2.0 * gone * outputs * (features - gone),
        "refit": problems.refit_flops(features - gone, outputs),
    }


def _right_looking(problem: Problem, found: Path, target: Target) -> float:
    """Seconds of one run of torch's path from the inverse on, which has to be as ours."""
    inverse = inverse_of(problem.gram, problem.ridge)
    start = target.now()
    wanted = right_looking(inverse, problem.weight, problem.columns, len(found[0]), in_place=True)
    seconds = target.now() - start
    check(found, wanted, len(problem.gram))
    return seconds


def _same(own: Tensor, theirs: Tensor) -> None:
    gap = float((own - theirs).norm() / theirs.norm())
    if gap > 1e-8:
        raise AssertionError(f"refitted weights differ from torch's by {gap:.1e}")


def check(found: Path, wanted: Path, features: int) -> None:
    """Order and errors are those of the right-looking form."""
    (own_order, own_errors), (order, errors) = found, wanted
    if not torch.equal(own_order, order):
        step = int((own_order != order).int().argmax())
        raise AssertionError(f"D = {features}: from step {step} the order differs from the right-looking form's")
    gap = float((own_errors - errors).abs().max() / errors.max())
    if gap > 1e-8:
        raise AssertionError(f"errors differ by {gap:.1e}")
    print(f"order as the right-looking form's, D = {features}, errors to {gap:.0e}", flush=True)


def _kept(problem: Problem, order: Tensor) -> Tensor:
    """Features that are left, ascending."""
    stays = torch.ones(len(problem.columns), dtype=torch.bool, device=order.device).index_fill_(0, order, False)
    return problem.columns[stays].flatten()


def _refits(problem: Problem, cross: Tensor, kept: Tensor) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Ours and torch's."""
    weight = cross.new_empty(len(cross), len(kept))
    task = SolveTask(problem.gram, cross, kept, problem.ridge, None, weight)

    def ours() -> Tensor:
        (failed,) = _native.batch_solve([task])
        if failed >= 0:
            raise AssertionError(f"pivot {failed} failed")
        return weight

    return ours, lambda: refitted(problem.gram[kept][:, kept], cross[:, kept], problem.ridge)


def _cuts(problem: Problem, task: PathTask) -> tuple[Callable[[], None], Callable[[], Tensor]]:
    """Ours and torch's: the weights at the end of the path, of which torch's has no zeros put in."""
    (consumer,) = task.consumers
    cut = torch.tensor([len(task.order)], device=task.order.device)
    weights = problem.weight.new_empty(1, *problem.weight.shape)
    request = CutsTask(problem.weight, problem.columns, task.order, consumer.factor, consumer.residual, cut, weights)
    return (
        lambda: _native.path_weights([request]),
        lambda: torch.addmm(problem.weight, consumer.residual.T, consumer.factor, alpha=-1),
    )
