"""Every kernel in slow float64 torch, straight from its equation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reapx._native import Window

F64 = torch.float64
EPS = torch.finfo(F64).eps


def patches(x: Tensor, window: Window, output_size: tuple[int, int]) -> Tensor:
    """(groups, B * Ho * Wo, D) float64: the rows that a convolution multiplies by its weights."""
    batch, channels, height, width = x.shape
    (kh, kw), (sh, sw) = window.kernel, window.stride
    (ph, pw), (dh, dw) = window.padding, window.dilation
    ho, wo = output_size
    bottom = max(0, (ho - 1) * sh + (kh - 1) * dh + 1 - ph - height)
    right = max(0, (wo - 1) * sw + (kw - 1) * dw + 1 - pw - width)
    x = F.pad(x.to(F64), (pw, right, ph, bottom))
    columns = torch.empty(batch, channels, kh, kw, ho, wo, dtype=F64)
    for i in range(kh):
        for j in range(kw):
            rows = x[:, :, i * dh :, j * dw :]
            columns[:, :, i, j] = rows[:, :, ::sh, ::sw][:, :, :ho, :wo]
    features = channels // window.groups * kh * kw
    columns = columns.reshape(batch, window.groups, features, ho * wo)
    return columns.permute(1, 0, 3, 2).reshape(window.groups, batch * ho * wo, features)


def grouped_rows(y: Tensor, groups: int) -> Tensor:
    """(groups, B * Ho * Wo, M / groups) float64: a target in the rows of `patches`."""
    batch, outputs, height, width = y.shape
    y = y.to(F64).reshape(batch, groups, outputs // groups, height * width)
    return y.permute(1, 0, 3, 2).reshape(groups, batch * height * width, outputs // groups)


def gram_accumulate(
    x: Tensor,
    window: Window,
    output_size: tuple[int, int],
    target: Tensor | None = None,
    positions: Tensor | None = None,
) -> dict[str, Tensor]:
    """The sums that the kernel adds, by the names of its arguments."""
    rows = patches(x, window, output_size)
    size = output_size[0] * output_size[1]
    if positions is not None:
        chosen = (positions + size * torch.arange(len(x))[:, None]).flatten()
        rows = rows[:, chosen]
    sums = {"gram": rows.mT @ rows, "total": rows.sum(1)}
    if target is not None:
        y = grouped_rows(target, window.groups)
        y = y if positions is None else y[:, chosen]
        sums["cross"] = y.mT @ rows
        sums["target_total"] = y.sum(1).flatten()
        sums["target_square"] = y.square().sum(1).flatten()
    return sums


def gram_bounds(x: Tensor, target: Tensor) -> dict[str, float]:
    """How far the sums may be off: each is a sum of float32 sums of at most 256 products, or a few
    such sums added and subtracted. Rounding errors of n terms are at most n * eps times the sum of
    the magnitudes, which Cauchy and Schwarz bound by the norms of the two largest channels.
    """
    unit = 256 * torch.finfo(torch.float32).eps
    a, b = x.to(F64).transpose(0, 1).flatten(1), target.to(F64).transpose(0, 1).flatten(1)
    norm_a, norm_b = float(a.norm(dim=1).max()), float(b.norm(dim=1).max())
    return {
        "gram": unit * norm_a**2,
        "total": unit * float(a.abs().sum(1).max()),
        "cross": unit * norm_a * norm_b,
        "target_total": unit * float(b.abs().sum(1).max()),
        "target_square": unit * norm_b**2,
    }


def basis_compute(gram: Tensor, ridge: float) -> Tensor:
    return torch.linalg.inv(gram + ridge * torch.eye(len(gram), dtype=F64))


def batch_solve(gram: Tensor, cross: Tensor, kept: Tensor, ridge: float, reference: Tensor | None) -> Tensor:
    wanted = cross if reference is None else cross + ridge * reference
    damped = gram[kept][:, kept] + ridge * torch.eye(len(kept), dtype=F64)
    return torch.linalg.solve(damped, wanted[:, kept].T).T


def refit(gram: Tensor, weight: Tensor, kept: Tensor) -> tuple[Tensor, float]:
    """The least-squares weights (M, D) on the kept columns, zero elsewhere, and the error they add.

    With full weights W = B G⁻¹ the cross moments are B = W G, and the error of W' over that of W is
    tr((W - W') G (W - W')ᵀ).
    """
    cross = weight @ gram
    full = torch.zeros_like(weight)
    if len(kept):
        full[:, kept] = torch.linalg.solve(gram[kept][:, kept], cross[:, kept].T).T
    change = weight - full
    return full, float((change @ gram * change).sum())


def eliminate_naive(
    grams: list[Tensor],
    weights: list[Tensor],
    columns: list[Tensor],
    scales: list[float],
    steps: int,
    forced: list[int],
) -> tuple[list[list[float]], list[int], list[list[Tensor]]]:
    """Greedy elimination as defined: delete each candidate, refit everything, keep the best.

    Returns the total error after the removal of each candidate at each step (indexed by unit, inf
    for those gone), the order, and the refitted weights of each consumer after each step.
    """
    units = columns[0].shape[0]
    gone: list[int] = []
    tables, fitted = [], []

    def fits(removed: list[int]) -> list[tuple[Tensor, float]]:
        results = []
        for gram, weight, own in zip(grams, weights, columns, strict=True):
            keep = torch.ones(len(gram), dtype=torch.bool)
            keep[own[removed].flatten()] = False
            results.append(refit(gram, weight, keep.nonzero().flatten()))
        return results

    for step in range(steps):
        table = [float("inf")] * units
        for unit in range(units):
            if unit not in gone:
                errors = [error for _, error in fits([*gone, unit])]
                table[unit] = sum(a * e for a, e in zip(scales, errors, strict=True))
        gone.append(forced[step] if step < len(forced) else table.index(min(table)))
        tables.append(table)
        fitted.append([weight for weight, _ in fits(gone)])
    return tables, gone, fitted


def eliminate_right_looking(
    basis: Tensor, weight: Tensor, columns: Tensor, steps: int, forced: Tensor | None = None
) -> tuple[list[int], list[float], Tensor]:
    """The same order from P, which is updated as a whole after each step; units in ``forced`` leave before, as one."""
    p, w = basis.clone(), weight.clone()
    alive = torch.ones(len(columns), dtype=torch.bool)

    def remove(units: Tensor) -> None:
        nonlocal w
        i = columns[units].flatten()
        update = torch.linalg.solve(p[i][:, i], p[i])
        w = w - w[:, i] @ update
        p.addmm_(p[:, i], update, alpha=-1)
        alive[units] = False

    if forced is not None:
        remove(forced)
    order, errors = [], []
    for _ in range(steps):
        left = columns[alive]
        own = w[:, left].permute(1, 2, 0)
        blocks = p[left[:, :, None], left[:, None, :]]
        scores = (torch.linalg.solve(blocks, own) * own).sum((1, 2))
        best = int(scores.argmin())
        order.append(int(alive.nonzero()[best]))
        errors.append(float(scores[best]))
        remove(torch.tensor([order[-1]]))
    return order, errors, w


@dataclass
class Pairs:
    """What letting p emulate q does to each consumer: (J, U, U), row q and column p.

    ``error_bounds`` and ``gain_bounds`` say how far two computations of them may differ. An entry of Delta G Delta^T,
    with the pair or before it, sums products of magnitudes that add up to at most D |Delta|^2 max(diag G); that times
    eps and the number of terms of all steps is the rounding error of each of the sums that an error is made of.
    """

    errors: Tensor
    gains: Tensor
    error_bounds: Tensor
    gain_bounds: Tensor


def pair_errors(
    grams: list[Tensor], starts: list[Tensor], weights: list[Tensor], columns: list[Tensor], moved: list[float]
) -> Pairs:
    """By how much the total errors grow for all pairs, each at its best gain, and the gains; written out.

    Args:
        starts: the weights before the first step, from which errors are counted.
        weights: the weights now.
        moved: how far the steps so far went, by the norms of what they changed; for the bounds.
    """
    units = len(columns[0])
    result = Pairs(*(torch.zeros(len(grams), units, units, dtype=F64) for _ in range(4)))
    for j, (gram, start, weight, own) in enumerate(zip(grams, starts, weights, columns, strict=True)):
        now = total_error(gram, weight - start)
        for q in range(units):
            without = weight.clone()
            without[:, own[q]] = 0.0
            size = moved[j] + float(weight[:, own[q]].norm())
            unit = 4 * (weight.numel() + len(gram)) * EPS * size**2 * float(gram.diagonal().max())
            pulls = weight.new_zeros(units, *weight.shape)  # one for each p
            for p in range(units):
                pulls[p][:, own[p]] = weight[:, own[q]]
            norms = total_error(gram, pulls)
            against = -((without - start) @ gram * pulls).sum((1, 2))
            gains = torch.where(norms > 0, against / norms, 0.0)
            result.errors[j, q] = total_error(gram, without + gains[:, None, None] * pulls - start) - now
            result.gains[j, q] = gains
            result.error_bounds[j, q] = unit * (1 + gains.abs()) ** 2
            result.gain_bounds[j, q] = torch.where(norms > 0, unit * (1 + gains.abs()) / norms, 0.0)
    return result


def total_error(gram: Tensor, change: Tensor) -> Tensor:
    """tr(Delta G Delta^T), of one change or of several."""
    return (change @ gram * change).sum((-2, -1))


def pair_table(pairs: Pairs, scales: list[float]) -> Tensor:
    """The total over consumers; inf on the diagonal."""
    table = (pairs.errors * torch.tensor(scales, dtype=F64)[:, None, None]).sum(0)
    return table.fill_diagonal_(torch.inf)


def unify(weights: list[Tensor], columns: list[Tensor], removed: int, partner: int, gains: list[float]) -> None:
    """W_p += a W_q, W_q = 0, in place."""
    for weight, own, gain in zip(weights, columns, gains, strict=True):
        weight[:, own[partner]] += gain * weight[:, own[removed]]
        weight[:, own[removed]] = 0.0


def path_weights(
    weight: Tensor, columns: Tensor, order: Tensor, factor: Tensor, residual: Tensor, cuts: list[int]
) -> Tensor:
    taps = columns.shape[1]
    weights = []
    for cut in cuts:
        rows = cut * taps
        now = weight - residual[:rows].T @ factor[:rows]
        now[:, columns[order[:cut]].flatten()] = 0.0
        weights.append(now)
    return torch.stack(weights) if weights else weight.new_empty(0, *weight.shape)
