"""Least-squares problems like those of a layer: correlated inputs, weights that are the optimum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reapx import _native
from reapx._native import PathConsumer, PathTask

F64 = torch.float64


@dataclass
class Problem:
    """U units of q features, M outputs.

    Attributes:
        gram: (U q, U q) float64.
        ridge: 1e-2 of its mean diagonal.
        weight: (M, U q) float64.
        columns: (U, q) int64.
    """

    gram: Tensor
    ridge: float
    weight: Tensor
    columns: Tensor

    @property
    def damped(self) -> Tensor:
        """gram + ridge I."""
        return self.gram + self.ridge * torch.eye(len(self.gram), dtype=F64)


def make(units: int, taps: int, outputs: int, seed: int = 0) -> Problem:
    """Inputs are a random mixture of independent ones, so that channels resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    features = units * taps
    x = torch.randn(features + 200, features, generator=generator)
    x = (x + x @ torch.randn(features, features, generator=generator) / features**0.5).relu()
    gram = (x.T @ x).to(F64)
    gram = (gram + gram.T) / 2
    weight = torch.randn(outputs, features, dtype=F64, generator=generator)
    columns = torch.arange(features).reshape(units, taps)
    return Problem(gram, 1e-2 * float(gram.diagonal().mean()), weight, columns)


def path_task(problem: Problem, steps: int) -> PathTask:
    """The biorthogonal basis, and a path to find from it."""
    basis = torch.empty_like(problem.gram)
    (failed,) = _native.basis_compute([problem.gram], [problem.ridge], [basis])
    if failed >= 0:
        raise AssertionError(f"pivot {failed} of the basis failed")
    rows = steps * problem.columns.shape[1]
    consumer = PathConsumer(
        basis,
        problem.weight,
        problem.columns,
        1.0,
        torch.empty(rows, len(basis), dtype=F64),
        torch.empty(rows, len(problem.weight), dtype=F64),
    )
    return PathTask(
        [consumer],
        torch.empty(0, dtype=torch.int64),
        torch.empty(steps, dtype=torch.int64),
        torch.empty(steps, dtype=F64),
        torch.empty(1, dtype=torch.int64),
    )


def select(problem: Problem, steps: int) -> tuple[Tensor, Tensor]:
    """Ours: the biorthogonal basis and REAP's path; order and errors."""
    task = path_task(problem, steps)
    _native.path_eliminate([task])
    if int(task.status) >= 0:
        raise AssertionError(f"the pivot of step {int(task.status)} failed")
    return task.order, task.errors


def select_flops(problem: Problem, steps: int) -> float:
    """Operations of an inverse and a path that uses symmetry and drops what left: what has to be done.

    The inverse takes D³ of them. Removing q of d columns updates half of a (d, d) matrix and a (d, M) one.
    """
    features, outputs = len(problem.gram), len(problem.weight)
    taps = problem.columns.shape[1]
    left = features - taps * torch.arange(1, steps + 1, dtype=F64)
    return features**3 + float((taps * left**2 + 2 * taps * left * outputs).sum())
