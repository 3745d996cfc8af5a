"""How weights without gradient shrink: the formulas of each optimiser, and measured norms next to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LEVELS = (1e-2, 1e-4, 1e-6)
POINTS, FLOOR = 60, 1e-12
"""Of a curve: how many, and the ratio at which it ends."""
Row = dict[str, Any]


def norms(weight: Tensor) -> Tensor:
    """(seed, node) norms over inputs, of numbers whose squares may be too small for float64."""
    top = weight.abs().amax(-2, keepdim=True).clamp_min(1e-300)
    return ((weight / top).square().sum(-2).sqrt() * top.squeeze(-2)).clone()


def formula(optimiser: torch.optim.Optimizer, start: dict[str, Tensor], times: Tensor) -> Tensor:
    """(time, seed) what is left of the idle weights, from the state they started in."""
    group = optimiser.param_groups[0]
    lr, decay, weight = group["lr"], group["weight_decay"], start["weight"]
    t = times.double().view(-1, 1, 1, 1)
    if "momentum" in group:
        # w_(t+1) = (1 + μ − lr λ) w_t − μ w_(t−1)
        momentum = group["momentum"]
        half = (1 + momentum - lr * decay) / 2
        slow, fast = (half + sign * math.sqrt(half**2 - momentum) for sign in (1, -1))
        second = weight - lr * (momentum * start["momentum_buffer"] + decay * weight)
        part = (second - fast * weight) / (slow - fast)
        found = part * slow**t + (weight - part) * fast**t
    elif group["decoupled_weight_decay"]:
        found = weight * (1 - lr * decay) ** t
    elif group["amsgrad"]:
        found = weight * torch.exp(-lr * decay * t / start["max_exp_avg_sq"].sqrt())
    else:
        root = math.sqrt(group["betas"][1])
        kappa = lr * decay / (start["exp_avg_sq"].sqrt() * (1 / root - 1))
        found = weight * torch.exp(-kappa * (root**-t - 1))
    return torch.stack([norms(one) / norms(weight) for one in found]).amax(2)


def summary(sizes: Tensor, optimiser: torch.optim.Optimizer, start: dict[str, Tensor]) -> Row:
    """Steps to each level, the end, and how far the formula is off in ln(w_t / w_0); sizes are (step, seed, node)."""
    ratio = (sizes / sizes[0]).amax(2)
    reached: dict[str, list[float] | None] = {}
    for level in LEVELS:
        below = ratio <= level
        first = below.int().argmax(0).double()
        reached[f"{level:g}"] = (
            [round(float(first.mean()), 1), round(float(first.std()), 1)] if below[-1].all() else None
        )
    last = len(ratio) - 1
    ended = (ratio <= FLOOR).all(1).int()
    stop = int(ended.argmax()) if ended.any() else last
    times = torch.linspace(0, stop, POINTS + 1).round().long()
    measured, said = ratio[times], formula(optimiser, start, times)
    held = (measured <= 0.9) & (measured >= LEVELS[-1])
    # What has hardly shrunk shows mostly the push of the last gradients, if Adam's momentum holds any.
    if "exp_avg" not in start or not start["exp_avg"].any():
        held[-1] |= ~held.any(0)
    apart = (measured.log() / said.log() - 1).abs()
    wrong = (apart > 0.1) & (measured <= 0.9) & (measured >= FLOOR)
    low, high = ratio[-1].clamp_min(1e-300).log().aminmax()
    return {
        "steps": reached,
        "end": short([float(ratio[-1].clamp_min(1e-300).log().mean().exp()), float(low.exp()), float(high.exp())]),
        "formula off by": short([float(apart[held].max())])[0] if held.any() else None,
        "off by 10 % from ratio": short([float(measured[wrong].max())])[0] if wrong.any() else None,
        "every": stop / POINTS,
        "measured": short(measured.clamp_min(1e-300).log().mean(1).exp().tolist()),
        "formula": short(said.clamp_min(1e-300).log().mean(1).exp().tolist()),
    }


def short(values: Sequence[float]) -> list[float]:
    """For the JSON file."""
    return [float(f"{value:.4g}") for value in values]
