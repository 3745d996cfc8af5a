"""Swap refinement against refitting every exchange."""

from __future__ import annotations

import itertools

import pytest
import reference
import torch
from torch import Tensor

from reapx.selection.swap import Problem, swap_units

pytestmark = pytest.mark.usefixtures("one_thread")

F64 = torch.float64


def make(units: int, taps: int, outputs: int, scale: float = 1.0) -> tuple[Tensor, Problem]:
    """A correlated Gram matrix and its problem."""
    features = units * taps
    x = torch.randn(4 * features, features, dtype=F64) @ torch.randn(features, features, dtype=F64)
    gram = x.T @ x
    columns = torch.randperm(features).reshape(units, taps)
    return gram, Problem(torch.linalg.inv(gram), torch.randn(outputs, features, dtype=F64), columns, scale)


def error(parts: list[tuple[Tensor, Problem]], removed: list[int]) -> float:
    return sum(p.scale * reference.refit(gram, p.weight, kept(p, removed))[1] for gram, p in parts)


def kept(problem: Problem, removed: list[int]) -> Tensor:
    keep = torch.ones(problem.columns.numel(), dtype=torch.bool)
    keep[problem.columns[removed].flatten()] = False
    return keep.nonzero().flatten()


@pytest.mark.parametrize("shapes", [[(9, 1, 4)], [(7, 4, 3)], [(8, 2, 5), (8, 3, 2)]])
def test_each_swap_lowers_the_error_until_none_does(shapes: list[tuple[int, int, int]]) -> None:
    parts = [make(*shape, scale=0.5 + i) for i, shape in enumerate(shapes)]
    problems = [problem for _, problem in parts]
    start = torch.tensor([2, 0, 5])
    errors = [error(parts, start.tolist())]
    swapped = start
    for swaps in range(1, 20):
        units, weights = swap_units(problems, start, swaps)
        assert len(set(units.tolist())) == len(start)
        if set(units.tolist()) == set(swapped.tolist()):
            break
        swapped = units
        errors.append(error(parts, units.tolist()))
        assert errors[-1] < errors[-2]
        for (gram, problem), weight in zip(parts, weights, strict=True):
            want, _ = reference.refit(gram, problem.weight, kept(problem, units.tolist()))
            assert (weight - want).norm() <= 1e-7 * problem.weight.norm()
    assert len(errors) > 1, "the start was chosen badly on purpose"
    best = min(error(parts, list(s)) for s in itertools.combinations(range(len(problems[0].columns)), 3))
    assert best * (1 - 1e-9) <= errors[-1]


def test_none_asked_for_none_made() -> None:
    gram, problem = make(6, 2, 3)
    units, (weight,) = swap_units([problem], torch.tensor([4, 1]), 0)
    assert units.tolist() == [4, 1]
    want, _ = reference.refit(gram, problem.weight, kept(problem, [4, 1]))
    assert (weight - want).norm() <= 1e-9 * problem.weight.norm()


def test_nothing_removed_or_everything() -> None:
    _, problem = make(5, 2, 3)
    units, (weight,) = swap_units([problem], torch.empty(0, dtype=torch.int64), 3)
    assert len(units) == 0 and torch.allclose(weight, problem.weight)
    units, (weight,) = swap_units([problem], torch.arange(5), 3)
    assert sorted(units.tolist()) == list(range(5)) and not weight.any()


def test_twins_are_not_exchanged_for_ever() -> None:
    x = torch.randn(300, 6, dtype=F64)
    x[:, 3] = x[:, 0] + 1e-7 * x[:, 3]
    gram = x.T @ x + 1e-6 * torch.eye(6, dtype=F64)
    problem = Problem(torch.linalg.inv(gram), torch.ones(2, 6, dtype=F64), torch.arange(6)[:, None], 1.0)
    units, _ = swap_units([problem], torch.tensor([3]), 1000)
    assert units.tolist() in ([3], [0])
