"""Least-squares problems like those of a layer: correlated inputs, weights that are the optimum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timing import HOST, Target
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
        return self.gram + self.ridge * torch.eye(len(self.gram), dtype=F64, device=self.gram.device)


def make(units: int, taps: int, outputs: int, target: Target = HOST, seed: int = 0) -> Problem:
    """Inputs are a random mixture of independent ones, so that channels resemble each other."""
    generator = torch.Generator(target.device).manual_seed(seed)
    given = {"generator": generator, "device": target.device}
    features = units * taps
    x = torch.randn(features + 200, features, **given)
    x = (x + x @ torch.randn(features, features, **given) / features**0.5).relu()
    gram = (x.T @ x).to(F64)
    gram = (gram + gram.T) / 2
    weight = torch.randn(outputs, features, dtype=F64, **given)
    columns = torch.arange(features, device=target.device).reshape(units, taps)
    return Problem(gram, 1e-2 * float(gram.diagonal().mean()), weight, columns)


def basis_of(problem: Problem) -> Tensor:
    """The biorthogonal basis: the inverse of the damped Gram matrix."""
    basis = torch.empty_like(problem.gram)
    (failed,) = _native.basis_compute([problem.gram], [problem.ridge], [basis])
    if failed >= 0:
        raise AssertionError(f"pivot {failed} of the basis failed")
    return basis


def path_task(problem: Problem, steps: int, basis: Tensor | None = None) -> PathTask:
    """A path to find from the biorthogonal basis."""
    basis = basis_of(problem) if basis is None else basis
    rows = steps * problem.columns.shape[1]
    consumer = PathConsumer(
        basis,
        problem.weight,
        problem.columns,
        1.0,
        basis.new_empty(rows, len(basis)),
        basis.new_empty(rows, len(problem.weight)),
    )
    return PathTask(
        [consumer],
        problem.columns.new_empty(0),
        problem.columns.new_empty(steps),
        basis.new_empty(steps),
        problem.columns.new_empty(1),
    )


def eliminate(task: PathTask) -> tuple[Tensor, Tensor]:
    """REAP's path; order and errors."""
    _native.path_eliminate([task])
    if int(task.status) >= 0:
        raise AssertionError(f"the pivot of step {int(task.status)} failed")
    return task.order, task.errors


def select(problem: Problem, steps: int) -> tuple[Tensor, Tensor]:
    """Ours: the biorthogonal basis and REAP's path; order and errors."""
    return eliminate(path_task(problem, steps))


def path_flops(problem: Problem, steps: int) -> float:
    """Operations of a path that uses symmetry and drops what left: what has to be done after the basis.

    Removing q of d columns updates half of a (d, d) matrix and a (d, M) one, at two for a multiply-add.
    """
    features, outputs = len(problem.gram), len(problem.weight)
    taps = problem.columns.shape[1]
    left = features - taps * torch.arange(1, steps + 1, dtype=F64)
    return float((taps * left**2 + 2 * taps * left * outputs).sum())


def basis_flops(features: int) -> float:
    """Of an inverse by Cholesky: D³ / 3 for the factor, 2 D³ / 3 for what is made of it."""
    return float(features) ** 3


def refit_flops(features: int, outputs: int) -> float:
    """Of a solution by Cholesky: the factor, and two triangular solves for each output."""
    return features**3 / 3 + 2.0 * features**2 * outputs


def select_flops(problem: Problem, steps: int) -> float:
    """Of a basis and a path."""
    return basis_flops(len(problem.gram)) + path_flops(problem, steps)
