"""What the kernels are measured against: the same results in plain torch, written as one would write them."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from timing import HOST, Target, interleaved
from torch import Tensor

from reapx._native import Window


def unfolded_gram(x: Tensor, window: Window) -> Tensor:
    """XᵀX of a convolution's patches (D, D) float32: unfold, then one product."""
    patches = F.unfold(x, window.kernel, window.dilation, window.padding, window.stride)
    rows = patches.transpose(1, 2).reshape(-1, patches.shape[1])
    return rows.T @ rows


def inverse_of(gram: Tensor, ridge: float) -> Tensor:
    """(G + ridge I)⁻¹ by Cholesky, of one matrix (D, D) or of many; on a GPU cuSOLVER, its verdict not looked at."""
    damped = gram.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return torch.cholesky_inverse(torch.linalg.cholesky_ex(damped)[0])


def refitted(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """Weights W of W (G + ridge I) = cross by Cholesky, of one system or of many."""
    damped = gram.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return torch.cholesky_solve(cross.mT, torch.linalg.cholesky_ex(damped)[0]).mT


def right_looking(p: Tensor, weight: Tensor, columns: Tensor, steps: int, *, in_place: bool) -> tuple[Tensor, Tensor]:
    """REAP's order and errors from P = (G + ridge I)⁻¹, which is updated as a whole after each removal.

    Nothing in it waits for a GPU.

    Args:
        p: (D, D) float64; overwritten if ``in_place``.
        weight: (M, D) float64, least-squares weights.
        columns: (U, q) int64.
        steps: Number of removals.
        in_place: Update P and W where they lie; without it, as the formula reads: ``P = P - ...``.

    Returns:
        (steps,) int64 order and (steps,) float64 errors.
    """
    w = weight.clone()
    alive = torch.ones(len(columns), dtype=torch.bool, device=p.device)
    order = torch.empty(steps, dtype=torch.int64, device=p.device)
    errors = torch.empty(steps, dtype=torch.float64, device=p.device)
    for step in range(steps):
        scores = _scores(p, w, columns, alive)
        unit = scores.argmin(keepdim=True)
        order[step], errors[step] = unit[0], scores.index_select(0, unit)[0]
        alive.index_fill_(0, unit, False)
        gone = columns.index_select(0, unit)[0]
        rows = p.index_select(0, gone)
        update = torch.linalg.solve_ex(rows.index_select(1, gone), rows)[0]
        lost = w.index_select(1, gone)
        if in_place:
            w.addmm_(lost, update, alpha=-1)
            p.addmm_(rows.T, update, alpha=-1)
        else:
            w = w - lost @ update
            p = p - rows.T @ update
    return order, errors


def _scores(p: Tensor, w: Tensor, columns: Tensor, alive: Tensor) -> Tensor:
    if columns.shape[1] == 1:
        scores = w.square().sum(0)[columns[:, 0]] / p.diagonal()[columns[:, 0]]
    else:
        blocks = p[columns[:, :, None], columns[:, None, :]]
        one = torch.eye(columns.shape[1], dtype=torch.float64, device=p.device)
        blocks = torch.where(alive[:, None, None], blocks, one)
        own = w[:, columns].permute(1, 2, 0)
        scores = torch.linalg.solve_ex(blocks, own @ own.mT)[0].diagonal(dim1=1, dim2=2).sum(1)
    return scores.masked_fill(~alive, torch.inf)


def candidate_error(gram: Tensor, cross: Tensor, target: float, kept: Tensor) -> float:
    """The reconstruction error after deleting all other columns and refitting: what the naive loop computes.

    ``cross`` (M, D) is W G and ``target`` tr(W G Wᵀ), the same for all candidates.
    """
    right = cross[:, kept]
    fitted = torch.cholesky_solve(right.T, torch.linalg.cholesky_ex(gram[kept][:, kept])[0])
    return target - float((fitted.T * right).sum())


def naive_loop(gram: Tensor, weight: Tensor, columns: Tensor, steps: int) -> tuple[list[int], list[float]]:
    """Greedy selection as defined: delete each candidate, refit everything, keep the best; order and errors."""
    alive = list(range(len(columns)))
    order, totals = [], [0.0]
    cross = weight @ gram
    target = float((cross * weight).sum())
    for _ in range(steps):
        errors = [candidate_error(gram, cross, target, _without(columns, alive, unit)) for unit in alive]
        best = min(range(len(alive)), key=errors.__getitem__)
        totals.append(errors[best])
        order.append(alive.pop(best))
    return order, [after - before for before, after in itertools.pairwise(totals)]


def naive_seconds(
    gram: Tensor, weight: Tensor, columns: Tensor, steps: int, points: int, target: Target = HOST
) -> float:
    """What the naive loop would take: refits timed at ``points`` sizes, in between a polynomial (at most a cubic)."""
    units = len(columns)
    cross = weight @ gram
    sizes = [units - round(step * (steps - 1) / max(points - 1, 1)) for step in range(points)]
    seconds = []
    for size in sizes:
        kept = columns[: size - 1].flatten()
        seconds += interleaved([lambda kept=kept: candidate_error(gram, cross, 0.0, kept)], 3, target)
    degree = min(3, points - 1)
    features = torch.tensor(sizes, dtype=torch.float64) / units
    powers = features[:, None] ** torch.arange(degree + 1)
    cubic = torch.linalg.lstsq(powers, torch.tensor(seconds, dtype=torch.float64)).solution
    widths = torch.arange(units, units - steps, -1, dtype=torch.float64)
    each = (widths[:, None] / units) ** torch.arange(degree + 1) @ cubic
    return float((widths * each).sum())


def _without(columns: Tensor, alive: list[int], unit: int) -> Tensor:
    return columns[[other for other in alive if other != unit]].flatten()
