"""Swap refinement against refitting every exchange."""

from __future__ import annotations

import itertools

import pytest
import reference
import torch
from torch import Tensor

from reapx._native import PathConsumer
from reapx.selection.swap import swap_units

F64 = torch.float64


def make(units: int, taps: int, outputs: int, scale: float = 1.0) -> tuple[Tensor, PathConsumer]:
    """A correlated Gram matrix and its problem."""
    features = units * taps
    x = torch.randn(4 * features, features, dtype=F64) @ torch.randn(features, features, dtype=F64)
    gram = x.T @ x
    columns = torch.randperm(features).reshape(units, taps)
    weight = torch.randn(outputs, features, dtype=F64)
    return gram, consumer(gram, weight, columns, scale)


def consumer(gram: Tensor, weight: Tensor, columns: Tensor, scale: float = 1.0) -> PathConsumer:
    nothing = torch.empty(0, dtype=F64)
    return PathConsumer(torch.linalg.inv(gram), weight, columns, scale, nothing, nothing)


def error(parts: list[tuple[Tensor, PathConsumer]], removed: list[int]) -> float:
    return sum(p.scale * reference.refit(gram, p.weight, kept(p, removed))[1] for gram, p in parts)


def kept(problem: PathConsumer, removed: list[int]) -> Tensor:
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
    problem = consumer(gram, torch.ones(2, 6, dtype=F64), torch.arange(6)[:, None])
    units, _ = swap_units([problem], torch.tensor([3]), 1000)
    assert units.tolist() in ([3], [0])


@pytest.mark.parametrize("noise", [1e-3, 1e-5])
def test_never_worse_where_the_gram_matrix_is_nearly_singular(noise: float) -> None:
    """Condition numbers up to 1e11, two consumers, many exchanges."""
    parts = []
    for taps, outputs in [(2, 5), (3, 4)]:
        features = 14 * taps
        x = torch.randn(200, features // 2, dtype=F64) @ torch.randn(features // 2, features, dtype=F64)
        x = x + noise * torch.randn(200, features, dtype=F64)
        gram = x.T @ x
        weight = torch.randn(outputs, features, dtype=F64)
        parts.append((gram, consumer(gram, weight, torch.arange(features).reshape(14, taps))))
    start = torch.arange(7)
    units, weights = swap_units([problem for _, problem in parts], start, 50)
    rounding = 1e-6 * error(parts, start.tolist())
    assert error(parts, units.tolist()) <= error(parts, start.tolist()) + rounding
    for (gram, problem), weight in zip(parts, weights, strict=True):
        change = problem.weight - weight
        least = reference.refit(gram, problem.weight, kept(problem, units.tolist()))[1]
        assert float((change @ gram * change).sum()) <= least + rounding
