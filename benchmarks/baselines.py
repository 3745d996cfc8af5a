"""What the kernels are measured against: the same results in plain torch, written as one would write them."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from timing import interleaved
from torch import Tensor

from reapx._native import Window


def unfolded_gram(x: Tensor, window: Window) -> Tensor:
    """XᵀX of a convolution's patches (D, D) float32: unfold, then one product."""
    patches = F.unfold(x, window.kernel, window.dilation, window.padding, window.stride)
    rows = patches.transpose(1, 2).reshape(-1, patches.shape[1])
    return rows.T @ rows


def right_looking(
    gram: Tensor, ridge: float, weight: Tensor, columns: Tensor, steps: int, *, in_place: bool
) -> tuple[Tensor, Tensor]:
    """REAP's order and errors from P = (G + ridge I)⁻¹, which is updated as a whole after each removal.

    Args:
        gram: (D, D) float64.
        ridge: Added to the diagonal.
        weight: (M, D) float64, least-squares weights.
        columns: (U, q) int64.
        steps: Number of removals.
        in_place: Update P and W where they lie; without it, as the formula reads: ``P = P - ...``.

    Returns:
        (steps,) int64 order and (steps,) float64 errors.
    """
    damped = gram.clone()
    damped.diagonal().add_(ridge)
    p, w = torch.cholesky_inverse(torch.linalg.cholesky(damped)), weight.clone()
    alive = torch.ones(len(columns), dtype=torch.bool)
    order = torch.empty(steps, dtype=torch.int64)
    errors = torch.empty(steps, dtype=torch.float64)
    for step in range(steps):
        scores = _scores(p, w, columns, alive)
        unit = int(scores.argmin())
        order[step], errors[step] = unit, scores[unit]
        alive[unit] = False
        gone = columns[unit]
        update = torch.linalg.solve(p[gone][:, gone], p[gone])
        if in_place:
            w.addmm_(w[:, gone], update, alpha=-1)
            p.addmm_(p[:, gone], update, alpha=-1)
        else:
            w = w - w[:, gone] @ update
            p = p - p[:, gone] @ update
    return order, errors


def _scores(p: Tensor, w: Tensor, columns: Tensor, alive: Tensor) -> Tensor:
    if columns.shape[1] == 1:
        scores = w.square().sum(0)[columns[:, 0]] / p.diagonal()[columns[:, 0]]
    else:
        blocks = p[columns[:, :, None], columns[:, None, :]]
        blocks[~alive] = torch.eye(columns.shape[1], dtype=torch.float64)
        own = w[:, columns].permute(1, 2, 0)
        scores = torch.linalg.solve(blocks, own @ own.mT).diagonal(dim1=1, dim2=2).sum(1)
    scores[~alive] = torch.inf
    return scores


def candidate_error(gram: Tensor, cross: Tensor, target: float, kept: Tensor) -> float:
    """The reconstruction error after deleting all other columns and refitting: what the naive loop computes.

    ``cross`` (M, D) is W G and ``target`` tr(W G Wᵀ), the same for all candidates.
    """
    right = cross[:, kept]
    fitted = torch.cholesky_solve(right.T, torch.linalg.cholesky(gram[kept][:, kept]))
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


def naive_seconds(gram: Tensor, weight: Tensor, columns: Tensor, steps: int, points: int) -> float:
    """What the naive loop would take: refits timed at ``points`` sizes, in between a polynomial (at most a cubic)."""
    units = len(columns)
    cross = weight @ gram
    sizes = [units - round(step * (steps - 1) / max(points - 1, 1)) for step in range(points)]
    seconds = []
    for size in sizes:
        kept = columns[: size - 1].flatten()
        seconds += interleaved([lambda kept=kept: candidate_error(gram, cross, 0.0, kept)], 3)
    degree = min(3, points - 1)
    features = torch.tensor(sizes, dtype=torch.float64) / units
    powers = features[:, None] ** torch.arange(degree + 1)
    cubic = torch.linalg.lstsq(powers, torch.tensor(seconds, dtype=torch.float64)).solution
    widths = torch.arange(units, units - steps, -1, dtype=torch.float64)
    each = (widths[:, None] / units) ** torch.arange(degree + 1) @ cubic
    return float((widths * each).sum())


def _without(columns: Tensor, alive: list[int], unit: int) -> Tensor:
    return columns[[other for other in alive if other != unit]].flatten()
