"""path_weights against a product for each cut."""

from __future__ import annotations

import kernels
import pytest
import reference
import torch
from test_path import bound, consumer, make_task, pick_columns, random_gram

from reapx import _native
from reapx._native import CutsTask

F64 = torch.float64
EPS = torch.finfo(F64).eps


def make_cuts(units: int, taps: int, extra: int, outputs: int, steps: int, cuts: list[int]) -> CutsTask:
    """Any numbers will do; as after path_eliminate, columns of units that left are zero from the next step on."""
    features = units * taps + extra
    columns = pick_columns(units, taps, features)
    order = torch.randperm(units)[:steps]
    factor = torch.randn(steps * taps, features, dtype=F64)
    for step, unit in enumerate(order.tolist()):
        factor[(step + 1) * taps :, columns[unit]] = 0.0
    return CutsTask(
        weight=torch.randn(outputs, features, dtype=F64),
        columns=columns,
        order=order,
        factor=factor,
        residual=torch.randn(steps * taps, outputs, dtype=F64),
        cuts=torch.tensor(cuts, dtype=torch.int64),
        weights=torch.full((len(cuts), outputs, features), float("nan"), dtype=F64),
    )


def check_cuts(task: CutsTask) -> None:
    want = reference.path_weights(task.weight, task.columns, task.order, task.factor, task.residual, task.cuts.tolist())
    assert bool((task.weights[want == 0] == 0).all())
    if want.numel():
        terms = max(1, len(task.factor))
        size = float(task.weight.abs().max())
        if len(task.factor):
            size += terms * float(task.factor.abs().max() * task.residual.abs().max())
        assert (task.weights - want).abs().max() <= terms * EPS * size


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize(
    ("units", "taps", "extra", "outputs", "steps", "cuts"),
    [
        (0, 1, 0, 3, 0, [0]),
        (1, 1, 0, 1, 1, [0, 1]),
        (7, 1, 2, 5, 7, [1, 1, 4, 7]),
        (6, 9, 3, 17, 5, [0, 2, 5, 5]),
        (5, 4, 0, 0, 3, [1, 3]),
        (5, 4, 1, 8, 4, []),
        (40, 9, 5, 33, 40, [1, 30, 40]),
        (600, 1, 0, 600, 555, [3, 300, 555]),
        (12, 64, 0, 48, 11, [0, 1, 7, 11]),
        (5, 128, 3, 70, 4, [1, 3, 4]),
    ],
)
def test_weights_at_cuts(
    units: int, taps: int, extra: int, outputs: int, steps: int, cuts: list[int], core: str
) -> None:
    task = make_cuts(units, taps, extra, outputs, steps, cuts)
    kernels.path_weights([task], core=core)
    check_cuts(task)


def test_weights_at_cuts_are_those_of_the_refit() -> None:
    gram = random_gram(30)
    task = make_task([consumer(gram, 7, pick_columns(10, 3, 30), 6)], 6)
    _native.path_eliminate([task])
    c = task.consumers[0]
    cuts, weights = torch.tensor([2, 6]), torch.empty(2, 7, 30, dtype=F64)
    _native.path_weights([CutsTask(c.weight, c.columns, task.order, c.factor, c.residual, cuts, weights)])
    for cut, got in zip(cuts.tolist(), weights, strict=True):
        keep = torch.ones(30, dtype=torch.bool)
        keep[c.columns[task.order[:cut]].flatten()] = False
        want, _ = reference.refit(gram, c.weight, keep.nonzero().flatten())
        assert (got - want).norm() <= bound([gram]) * want.norm()
        assert bool((got[:, ~keep] == 0).all())


def test_weights_at_cuts_do_not_depend_on_threads() -> None:
    sizes = [(50, 9, 2, 70, 40, [5, 20, 40]), (9, 1, 0, 3, 9, [4]), (600, 1, 1, 200, 400, [100, 400])]
    tasks = [make_cuts(*size) for size in sizes]
    results = []
    for threads, together in [(1, True), (2, True), (3, False)]:
        torch.set_num_threads(threads)
        for batch in [tasks] if together else [[task] for task in tasks]:
            _native.path_weights(batch)
        results.append([task.weights.clone() for task in tasks])
    for task in tasks:
        check_cuts(task)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("cuts", [[2, 1], [-1], [0, 4]])
def test_cuts_that_do_not_fit(cuts: list[int]) -> None:
    task = make_cuts(5, 2, 0, 3, 3, [0] * len(cuts))
    task.cuts[:] = torch.tensor(cuts)
    with pytest.raises(ValueError, match=r"cuts must ascend within 0\.\.3"):
        _native.path_weights([task])
