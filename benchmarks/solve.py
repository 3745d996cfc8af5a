"""Reconstruction: one large layer against scikit-learn, many kept sets against torch; on a GPU all against torch."""

from __future__ import annotations

import factors
import problems
import torch
from baselines import refitted
from gram import sums_for
from peak import Amount
from rows import Row
from sklearn.linear_model import LinearRegression
from timing import Target, interleaved
from torch import Tensor

from reapx import _native
from reapx._native import CutsTask, SolveTask, Window


def rows(target: Target, quick: bool) -> list[Row]:
    """A reconstruction from the activations on, against other ways, and eight cuts of one layer."""
    samples, features, outputs = (60, 12, 5) if quick else (5120, 2304, 512)
    return [
        *_one(samples, features, outputs, target, 1 if quick else 5),
        _kept_sets(8 if quick else 128, 9, 8 if quick else 128, target, 2 if quick else 7),
        _cuts(8 if quick else 256, 9, 8 if quick else 256, target, 2 if quick else 7),
        *(factors.rows(target, quick) if target.cuda or quick else []),
    ]


def reconstruct(x: Tensor, y: Tensor) -> Tensor:
    """Ours: least-squares weights (M, D) with an intercept, from float32 activations (N, D) to targets (N, M)."""
    samples, features = x.shape
    gram, total = sums_for(features, Target(x.device))
    cross = gram.new_zeros(1, y.shape[1], features)
    target_total = gram.new_zeros(y.shape[1])
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
    weight = gram.new_empty(y.shape[1], features)
    kept = torch.arange(features, device=x.device)
    (failed,) = _native.batch_solve([SolveTask(gram[0], cross[0], kept, 0.0, None, weight)])
    if failed >= 0:
        raise AssertionError(f"pivot {failed} failed")
    return weight


def normal_equations(x: Tensor, y: Tensor) -> Tensor:
    """The same in torch: float32 products, float64 Cholesky; weights (M, D)."""
    mean, target_mean = x.mean(0), y.mean(0)
    left, right = x - mean, y - target_mean
    factor = torch.linalg.cholesky_ex((left.T @ left).double())[0]
    return torch.cholesky_solve((left.T @ right).double(), factor).T


def least_squares(x: Tensor, y: Tensor) -> Tensor:
    """The same by torch.linalg.lstsq, which is QR in float32 on a GPU."""
    return torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution.T


def _scikit(x: Tensor, y: Tensor, target: Target) -> tuple[dict[str, float], Tensor]:
    """Seconds in both precisions, once each, for that takes seconds; and the weights in float64."""
    model = LinearRegression()
    seconds = {}
    for dtype in ("float32", "float64"):
        start = target.now()
        model.fit(x.numpy().astype(dtype), y.numpy().astype(dtype))
        seconds[f"scikit-learn LinearRegression, {dtype}"] = target.now() - start
    return seconds, torch.from_numpy(model.coef_)


def _one(samples: int, features: int, outputs: int, target: Target, rounds: int) -> list[Row]:
    """scikit-learn takes singular values, which bears worse conditioned problems than normal equations do."""
    x = torch.randn(samples, features, device=target.device)
    y = x @ torch.randn(features, outputs, device=target.device)
    y += torch.randn(samples, outputs, device=target.device)
    calls = {"torch normal equations": lambda: normal_equations(x, y)}
    seconds: dict[str, float] = {}
    if target.cuda:
        calls["torch lstsq, float32"] = lambda: least_squares(x, y)
        want = least_squares(x.double(), y.double())
    else:
        seconds, want = _scikit(x, y, target)
    for got in (reconstruct(x, y), *(call() for call in calls.values())):
        gap = float((got - want).norm() / want.norm())
        if gap > 1e-3:
            raise AssertionError(f"weights differ by {gap:.1e} from those in float64")
    ours, *others = interleaved([lambda: reconstruct(x, y), *calls.values()], rounds, target)
    single = samples * features * (features + 1.0 + 2 * outputs)
    amount = Amount(float32=single / 1e9, float64=problems.refit_flops(features, outputs) / 1e9)
    case = f"{samples} x {features} -> {outputs}"
    seconds |= dict(zip(calls, others, strict=True))
    return [Row("reconstruction", case, target, ours, name, theirs, amount) for name, theirs in seconds.items()]


def _kept_sets(units: int, taps: int, outputs: int, target: Target, rounds: int) -> Row:
    problem = problems.make(units, taps, outputs, target)
    gram, cross = problem.gram, problem.weight @ problem.gram
    sizes = [units * (i + 1) // 9 for i in range(8)]
    kept = [problem.columns[torch.randperm(units, device=target.device)[:size]].flatten() for size in sizes]
    weights = [gram.new_empty(outputs, len(rows)) for rows in kept]

    def ours() -> None:
        _native.batch_solve(
            [
                SolveTask(gram, cross, rows, problem.ridge, None, weight)
                for rows, weight in zip(kept, weights, strict=True)
            ]
        )

    def theirs() -> list[Tensor]:
        return [refitted(gram[rows][:, rows], cross[:, rows], problem.ridge) for rows in kept]

    ours()
    for got, want in zip(weights, theirs(), strict=True):
        if float((got - want).norm()) > 1e-8 * float(want.norm()):
            raise AssertionError("weights differ from torch's")
    own, other = interleaved([ours, theirs], rounds, target)
    flops = sum(problems.refit_flops(len(rows), outputs) for rows in kept)
    case = f"8 kept sets of {units} of {taps}, M {outputs}"
    return Row("refit", case, target, own, "torch Cholesky", other, Amount(float64=flops / 1e9))


def _cuts(units: int, taps: int, outputs: int, target: Target, rounds: int) -> Row:
    """Eight widths of one path."""
    problem = problems.make(units, taps, outputs, target)
    steps = units // 2
    task = problems.path_task(problem, steps)
    _native.path_eliminate([task])
    (consumer,) = task.consumers
    cuts = torch.arange(1, 9, device=target.device) * steps // 8
    weights = problem.weight.new_empty(8, *problem.weight.shape)
    places = cuts.tolist()
    request = CutsTask(problem.weight, problem.columns, task.order, consumer.factor, consumer.residual, cuts, weights)

    def theirs() -> list[Tensor]:
        found, weight, last = [], problem.weight, 0
        for cut in places:
            part = slice(last * taps, cut * taps)
            weight = torch.addmm(weight, consumer.residual[part].T, consumer.factor[part], alpha=-1)
            found.append(weight)
            last = cut
        return found

    _native.path_weights([request])
    if float((weights - torch.stack(theirs())).abs().max()) > 1e-9 * float(problem.weight.abs().max()):
        raise AssertionError("weights differ from torch's")
    ours, other = interleaved([lambda: _native.path_weights([request]), theirs], rounds, target)
    flops = 2.0 * steps * taps * outputs * len(problem.gram)
    case = f"8 cuts of a path, {units} of {taps}, M {outputs}"
    return Row("weights", case, target, ours, "torch addmm", other, Amount(float64=flops / 1e9))
