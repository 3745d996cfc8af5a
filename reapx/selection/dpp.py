"""DPP (Divnet): a random sample of channels that behave differently from each other stays.

Source: Z. Mariet and S. Sra, "Diversity Networks: Neural Network Compression Using Determinantal Point Processes",
ICLR 2016; sampling by A. Kulesza and B. Taskar, "k-DPPs: Fixed-Size Determinantal Point Processes", ICML 2011.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .paths.channel_grams import behaviour_gram
from .paths.consumers import MeasuredConsumer

_SEED = 0
_JITTER = 1e-10


def dpp_order(consumers: Sequence[MeasuredConsumer], steps: int) -> Tensor:
    """(steps,) int64 units that a k-DPP sample of all but ``steps`` units leaves out; the same on every run.

    The kernel is L_cd = exp(-‖v_c - v_d‖²), where v_c is the behaviour of unit c, scaled so that the mean square of all
    is 1. The units most similar to the sample leave first. So only the last cut is a sample; earlier ones are greedy.
    """
    kernel = _kernel(behaviour_gram(consumers).cpu())
    stays = _sample(kernel, len(kernel) - steps, torch.Generator().manual_seed(_SEED))
    return _added(kernel, stays).flip(0)


def _kernel(gram: Tensor) -> Tensor:
    square = gram.diagonal()
    scale = square.mean().clamp(min=1e-300)
    apart = (square[:, None] + square - 2 * gram).clamp(min=0) / scale
    return torch.exp(-apart) + _JITTER * torch.eye(len(gram), dtype=gram.dtype)


def _sample(kernel: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """``count`` units, a set S with probability proportional to det L_S."""
    values, vectors = torch.linalg.eigh(kernel)
    chosen = _eigenvectors(values.clamp(min=1e-300).log(), count, generator)
    return _project(vectors[:, chosen], generator)


def _eigenvectors(logs: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Which eigenvectors span the sample, given the logarithms of the eigenvalues."""
    size = len(logs)
    # Row k, column n: log of the k-th elementary symmetric polynomial of the first n eigenvalues.
    table = torch.full((count + 1, size + 1), -torch.inf, dtype=torch.float64)
    table[0] = 0.0
    for n in range(1, size + 1):
        table[1:, n] = torch.logaddexp(table[1:, n - 1], logs[n - 1] + table[:-1, n - 1])
    draws = torch.rand(size, generator=generator, dtype=torch.float64).log()
    chosen: list[int] = []
    for n in range(size, 0, -1):
        remaining = count - len(chosen)
        if remaining and draws[n - 1] < logs[n - 1] + table[remaining - 1, n - 1] - table[remaining, n]:
            chosen.append(n - 1)
    return chosen


def _project(vectors: Tensor, generator: torch.Generator) -> list[int]:
    """One unit for each of some orthonormal vectors (units, count), sampled from the DPP that they span."""
    units, count = vectors.shape
    weight = vectors.square().sum(1)
    factor = torch.zeros(units, count, dtype=vectors.dtype)
    chosen: list[int] = []
    for step in range(count):
        weight[chosen] = 0.0
        unit = int(torch.multinomial(weight.clamp(min=1e-300), 1, generator=generator))
        column = vectors @ vectors[unit] - factor[:, :step] @ factor[unit, :step]
        factor[:, step] = column / column[unit].clamp(min=1e-300).sqrt()
        weight = weight - factor[:, step].square()
        chosen.append(unit)
    return chosen


def _added(kernel: Tensor, stays: Sequence[int]) -> Tensor:
    """The units outside ``stays``; each differs most from ``stays`` and the units added before it."""
    units = len(kernel)
    variance = kernel.diagonal().clone()
    factor = torch.zeros(units, units, dtype=kernel.dtype)
    taken = torch.zeros(units, dtype=torch.bool)
    added: list[int] = []
    for step in range(units):
        free = torch.where(taken, -torch.inf, variance)
        unit = stays[step] if step < len(stays) else int(free.argmax())
        column = kernel[:, unit] - factor[:, :step] @ factor[unit, :step]
        factor[:, step] = column / column[unit].clamp(min=_JITTER).sqrt()
        variance = variance - factor[:, step].square()
        taken[unit] = True
        if step >= len(stays):
            added.append(unit)
    return torch.tensor(added, dtype=torch.int64)
