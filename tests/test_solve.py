"""batch_solve against torch.linalg.solve."""

from __future__ import annotations

import kernels
import pytest
import reference
import torch
from torch import Tensor

from reapx import _native
from reapx._native import SolveTask

F64 = torch.float64
EPS = torch.finfo(F64).eps


def make(features: int, outputs: int, kept: int, ridge: float, referenced: bool) -> SolveTask:
    x = torch.randn(2 * features + 3, features, dtype=F64)
    return SolveTask(
        gram=x.T @ x,
        cross=torch.randn(outputs, features, dtype=F64),
        kept=torch.randperm(features)[:kept],
        ridge=ridge,
        reference=torch.randn(outputs, features, dtype=F64) if referenced else None,
        weight=torch.full((outputs, kept), float("nan"), dtype=F64),
    )


def check(task: SolveTask) -> None:
    if task.weight.numel() == 0:
        return
    want = reference.batch_solve(task.gram, task.cross, task.kept, task.ridge, task.reference)
    condition = float(torch.linalg.cond(task.gram[task.kept][:, task.kept]))
    bound = 10 * len(task.kept) * EPS * condition
    assert (task.weight - want).norm() <= bound * want.norm()


@pytest.mark.parametrize("core", kernels.CORES)
def test_sizes(core: str) -> None:
    tasks = [
        make(max(kept, 3) + extra, outputs, kept, 0.5 * extra, extra > 0)
        for kept in (0, 1, 7, 8, 9, 16, 17, 63, 64, 65, 130, 300)
        for outputs in (0, 1, 16, 17, 33)
        for extra in (0, 5)
    ]
    assert kernels.batch_solve(tasks, core=core) == [-1] * len(tasks)
    for task in tasks:
        check(task)


def test_threads_do_not_change_a_bit() -> None:
    tasks = [
        make(830, 50, 800, 0.1, True),
        make(60, 20, 30, 0.1, False),
        make(90, 5, 90, 0.0, True),
    ]
    results: list[list[Tensor]] = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert _native.batch_solve(tasks) == [-1] * 3
        results.append([task.weight.clone() for task in tasks])
    for task in tasks:
        check(task)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("core", kernels.CORES)
def test_company_does_not_change_a_bit(core: str) -> None:
    tasks = [
        make(60, 20, 30, 0.1, False),
        make(600, 70, 580, 0.1, True),
        make(90, 5, 90, 0.0, True),
        make(70, 0, 66, 0.0, False),
        make(400, 130, 320, 0.1, False),
    ]
    assert kernels.batch_solve(tasks, core=core) == [-1] * len(tasks)
    for task in tasks:
        check(task)
        together = task.weight.clone()
        assert kernels.batch_solve([task], core=core) == [-1]
        assert torch.equal(task.weight, together)


@pytest.mark.parametrize("core", kernels.CORES)
def test_residual_is_orthogonal_to_the_kept_inputs(core: str) -> None:
    x, y = torch.randn(200, 30, dtype=F64), torch.randn(200, 8, dtype=F64)
    kept = torch.arange(0, 30, 2)
    weight = torch.empty(8, 15, dtype=F64)
    assert kernels.batch_solve([SolveTask(x.T @ x, y.T @ x, kept, 0.0, None, weight)], core=core) == [-1]
    inputs = x[:, kept]
    rounding = 1000 * EPS * inputs.norm() * y.norm()
    assert ((y - inputs @ weight.T).T @ inputs).norm() <= rounding


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize(("kept", "place"), [(12, 9), (300, 64), (300, 290)])
def test_failing_pivot_is_a_position_in_kept(kept: int, place: int, core: str) -> None:
    task = make(kept + 8, 4, kept, 0.0, False)
    first, second = int(task.kept[2]), int(task.kept[place])
    task.gram[second] = task.gram[first]
    task.gram[:, second] = task.gram[:, first]
    good = make(10, 3, 5, 0.0, False)
    assert kernels.batch_solve([good, task], core=core) == [-1, place]
    assert bool(task.weight.isnan().all())
    check(good)


@pytest.mark.parametrize("core", kernels.CORES)
def test_nothing_to_do(core: str) -> None:
    assert kernels.batch_solve([], core=core) == []
    assert kernels.batch_solve([make(3, 2, 0, 1.0, True)], core=core) == [-1]
