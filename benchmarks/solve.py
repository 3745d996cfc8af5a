"""Reconstruction: one large layer against scikit-learn, many kept sets against torch."""

from __future__ import annotations

import time

import problems
import torch
from gram import sums_for
from peak import Amount
from rows import Row
from sklearn.linear_model import LinearRegression
from timing import interleaved
from torch import Tensor

from reapx import _native
from reapx._native import CutsTask, SolveTask, Window

F64 = torch.float64


def rows(threads: int, quick: bool) -> list[Row]:
    """A reconstruction from the activations on, against two ways, and eight cuts of one layer."""
    samples, features, outputs = (60, 12, 5) if quick else (5120, 2304, 512)
    return [
        *_one(samples, features, outputs, threads, 1 if quick else 5),
        _kept_sets(8 if quick else 128, 9, 8 if quick else 128, threads, 2 if quick else 7),
        _cuts(8 if quick else 256, 9, 8 if quick else 256, threads, 2 if quick else 7),
    ]


def reconstruct(x: Tensor, y: Tensor) -> Tensor:
    """Ours: least-squares weights (M, D) with an intercept, from float32 activations (N, D) to targets (N, M)."""
    samples, features = x.shape
    gram, total = sums_for(features)
    cross = torch.zeros(1, y.shape[1], features, dtype=F64)
    target_total = torch.zeros(y.shape[1], dtype=F64)
    _native.gram_accumulate(
        x[:, :, None, None],
        Window(),
        (1, 1),
        gram,
        total,
        target=y[:, :, None, None],
        cross=cross,
        target_total=target_total,
        target_square=torch.zeros_like(target_total),
    )
    _native.gram_mirror(gram)
    mean = total[0] / samples
    gram[0].addr_(total[0], mean, alpha=-1)
    cross[0].addr_(target_total, mean, alpha=-1)
    weight = torch.empty(y.shape[1], features, dtype=F64)
    (failed,) = _native.batch_solve([SolveTask(gram[0], cross[0], torch.arange(features), 0.0, None, weight)])
    if failed >= 0:
        raise AssertionError(f"pivot {failed} failed")
    return weight


def normal_equations(x: Tensor, y: Tensor) -> Tensor:
    """The same in torch: float32 products, float64 Cholesky; weights (M, D)."""
    mean, target_mean = x.mean(0), y.mean(0)
    left, right = x - mean, y - target_mean
    factor = torch.linalg.cholesky((left.T @ left).double())
    return torch.cholesky_solve((left.T @ right).double(), factor).T


def _one(samples: int, features: int, outputs: int, threads: int, rounds: int) -> list[Row]:
    """scikit-learn takes singular values, which bears worse conditioned problems than normal equations do."""
    x = torch.randn(samples, features)
    y = x @ torch.randn(features, outputs) + torch.randn(samples, outputs)
    left, right = x.numpy(), y.numpy()
    model = LinearRegression()
    seconds = []
    for dtype in ("float32", "float64"):  # once each: that takes seconds
        start = time.perf_counter()
        model.fit(left.astype(dtype), right.astype(dtype))
        seconds.append(time.perf_counter() - start)
    want = torch.from_numpy(model.coef_)
    for got in (reconstruct(x, y), normal_equations(x, y)):
        gap = float((got - want).norm() / want.norm())
        if gap > 1e-3:
            raise AssertionError(f"weights differ from scikit-learn's by {gap:.1e}")
    ours, torch_seconds = interleaved([lambda: reconstruct(x, y), lambda: normal_equations(x, y)], rounds)
    single = samples * features * (features + 1.0 + 2 * outputs)
    double = features**3 / 3 + 2.0 * features**2 * outputs
    amount = Amount(float32=single / 1e9, float64=double / 1e9)
    case = f"{samples} x {features} -> {outputs}"
    return [
        Row("reconstruction", case, threads, ours, "scikit-learn LinearRegression, float32", seconds[0], amount),
        Row("reconstruction", case, threads, ours, "scikit-learn LinearRegression, float64", seconds[1], amount),
        Row("reconstruction", case, threads, ours, "torch normal equations", torch_seconds, amount),
    ]


def _kept_sets(units: int, taps: int, outputs: int, threads: int, rounds: int) -> Row:
    problem = problems.make(units, taps, outputs)
    gram, cross = problem.gram, problem.weight @ problem.gram
    sizes = [units * (i + 1) // 9 for i in range(8)]
    kept = [problem.columns[torch.randperm(units)[:size]].flatten() for size in sizes]
    weights = [torch.empty(outputs, len(rows), dtype=F64) for rows in kept]

    def ours() -> None:
        _native.batch_solve(
            [
                SolveTask(gram, cross, rows, problem.ridge, None, weight)
                for rows, weight in zip(kept, weights, strict=True)
            ]
        )

    def theirs() -> list[Tensor]:
        fits = []
        for rows in kept:
            damped = gram[rows][:, rows]
            damped.diagonal().add_(problem.ridge)
            fits.append(torch.cholesky_solve(cross[:, rows].T, torch.linalg.cholesky(damped)).T)
        return fits

    ours()
    for got, want in zip(weights, theirs(), strict=True):
        if float((got - want).norm()) > 1e-8 * float(want.norm()):
            raise AssertionError("weights differ from torch's")
    own, other = interleaved([ours, theirs], rounds)
    flops = sum(len(rows) ** 3 / 3 + 2.0 * len(rows) ** 2 * outputs for rows in kept)
    case = f"8 kept sets of {units} of {taps}, M {outputs}"
    return Row("refit", case, threads, own, "torch Cholesky", other, Amount(float64=flops / 1e9))


def _cuts(units: int, taps: int, outputs: int, threads: int, rounds: int) -> Row:
    """Eight widths of one path."""
    problem = problems.make(units, taps, outputs)
    steps = units // 2
    task = problems.path_task(problem, steps)
    _native.path_eliminate([task])
    (consumer,) = task.consumers
    cuts = torch.arange(1, 9) * steps // 8
    weights = torch.empty(8, *problem.weight.shape, dtype=F64)
    request = CutsTask(problem.weight, problem.columns, task.order, consumer.factor, consumer.residual, cuts, weights)

    def theirs() -> list[Tensor]:
        found, weight, last = [], problem.weight, 0
        for cut in cuts.tolist():
            part = slice(last * taps, cut * taps)
            weight = torch.addmm(weight, consumer.residual[part].T, consumer.factor[part], alpha=-1)
            found.append(weight)
            last = cut
        return found

    _native.path_weights([request])
    if float((weights - torch.stack(theirs())).abs().max()) > 1e-9 * float(problem.weight.abs().max()):
        raise AssertionError("weights differ from torch's")
    ours, other = interleaved([lambda: _native.path_weights([request]), theirs], rounds)
    flops = 2.0 * steps * taps * outputs * len(problem.gram)
    case = f"8 cuts of a path, {units} of {taps}, M {outputs}"
    return Row("weights", case, threads, ours, "torch addmm", other, Amount(float64=flops / 1e9))
