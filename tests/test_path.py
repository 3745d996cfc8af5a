"""path_eliminate against deleting every candidate and refitting."""

from __future__ import annotations

import kernels
import pytest
import reference
import torch
from torch import Tensor

from reapx import _native
from reapx._native import PathConsumer, PathTask

F64 = torch.float64
EPS = torch.finfo(F64).eps


def random_gram(size: int) -> Tensor:
    x = torch.randn(2 * size + 5, size, dtype=F64)
    return x.T @ x


def pick_columns(units: int, taps: int, features: int) -> Tensor:
    return torch.randperm(features)[: units * taps].reshape(units, taps).contiguous()


def consumer(gram: Tensor, outputs: int, columns: Tensor, steps: int, scale: float = 1.0) -> PathConsumer:
    features, taps = len(gram), columns.shape[1]
    return PathConsumer(
        basis=reference.basis_compute(gram, 0.0).contiguous() if features else gram,
        weight=torch.randn(outputs, features, dtype=F64),
        columns=columns,
        scale=scale,
        factor=torch.full((steps * taps, features), float("nan"), dtype=F64),
        residual=torch.full((steps * taps, outputs), float("nan"), dtype=F64),
    )


def make_task(consumers: list[PathConsumer], steps: int, forced: list[int] | None = None) -> PathTask:
    return PathTask(
        consumers=consumers,
        forced=torch.tensor(forced or [], dtype=torch.int64),
        order=torch.full((steps,), -7),
        errors=torch.full((steps,), float("nan"), dtype=F64),
        status=torch.tensor([-7]),
    )


def weight_at(c: PathConsumer, step: int) -> Tensor:
    rows = step * c.columns.shape[1]
    return c.weight - c.residual[:rows].T @ c.factor[:rows]


def bound(grams: list[Tensor]) -> float:
    condition = max(float(torch.linalg.cond(gram)) for gram in grams)
    return 100 * max(len(gram) for gram in grams) * EPS * condition


def check_against_naive(task: PathTask, grams: list[Tensor]) -> None:
    """Errors and weights at every cut, and that no candidate was better than the one that left."""
    steps = len(task.order)
    forced = task.forced.tolist()
    tables, _, fitted = reference.eliminate_naive(
        grams,
        [c.weight for c in task.consumers],
        [c.columns for c in task.consumers],
        [c.scale for c in task.consumers],
        steps,
        task.order.tolist(),
    )
    assert int(task.status) == -1
    assert task.order[: len(forced)].tolist() == forced[:steps]
    assert len(set(task.order.tolist())) == steps
    size = max(min(table) for table in tables) + 1e-300
    tolerance = bound(grams)
    total = 0.0
    for step, table in enumerate(tables):
        total += float(task.errors[step])
        unit = int(task.order[step])
        assert abs(total - table[unit]) <= tolerance * max(size, table[unit])
        if step >= len(forced):
            assert table[unit] - min(table) <= tolerance * size
        for c, want in zip(task.consumers, fitted[step], strict=True):
            got = weight_at(c, step + 1)
            assert (got - want).norm() <= tolerance * c.weight.norm()


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize(
    ("units", "taps", "extra", "outputs", "steps"),
    [
        (1, 1, 0, 1, 1),
        (2, 1, 0, 3, 2),
        (7, 1, 2, 4, 7),
        (9, 4, 0, 5, 9),
        (6, 9, 3, 16, 6),
        (17, 2, 1, 17, 17),
        (40, 1, 0, 6, 40),
        (12, 3, 5, 1, 5),
        (3, 25, 0, 8, 2),
        (2, 70, 0, 3, 2),
        (2, 130, 1, 4, 2),
        # Attention heads of 64, 80 and 128 channels.
        (6, 64, 0, 40, 5),
        (3, 80, 2, 90, 2),
        (4, 128, 0, 33, 3),
        (5, 2, 0, 0, 5),
        # So many outputs that the kernel keeps their Gram matrix instead of the weights.
        (9, 1, 3, 60, 9),
        (12, 1, 0, 300, 12),
        (5, 4, 2, 250, 5),
        (6, 9, 0, 900, 4),
        (4, 64, 0, 700, 3),
        (3, 128, 0, 800, 2),
    ],
)
def test_every_step_is_the_best(units: int, taps: int, extra: int, outputs: int, steps: int, core: str) -> None:
    gram = random_gram(units * taps + extra)
    columns = pick_columns(units, taps, len(gram))
    task = make_task([consumer(gram, outputs, columns, steps)], steps)
    kernels.path_eliminate([task], core=core)
    check_against_naive(task, [gram])


@pytest.mark.parametrize("core", kernels.CORES)
def test_several_consumers_with_different_taps(core: str) -> None:
    """The last one has so many outputs that it is kept in the other form."""
    units, steps = 10, 10
    grams = [random_gram(units * taps + 2) for taps in (1, 4, 9, 1)]
    consumers = [
        consumer(g, m, pick_columns(units, q, len(g)), steps, scale)
        for g, q, m, scale in zip(grams, (1, 4, 9, 1), (5, 3, 8, 200), (0.5, 2.0, 0.01, 0.02), strict=True)
    ]
    task = make_task(consumers, steps)
    kernels.path_eliminate([task], core=core)
    check_against_naive(task, grams)


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize("forced", [[3], [5, 0, 2], [7, 6, 5, 4, 3, 2, 1, 0]])
def test_forced_units_leave_first(forced: list[int], core: str) -> None:
    gram = random_gram(26)
    for steps in (1, 4, 8):
        task = make_task([consumer(gram, 4, pick_columns(8, 3, 26), steps)], steps, forced)
        kernels.path_eliminate([task], core=core)
        check_against_naive(task, [gram])


@pytest.mark.parametrize("core", kernels.CORES)
def test_dead_and_duplicate_channels_leave_first_at_no_cost(core: str) -> None:
    """A dead channel costs nothing; of two equal ones, the first to go costs nothing."""
    x = torch.randn(300, 12, dtype=F64)
    x[:, 4] = 0.0
    x[:, 9] = x[:, 2]
    ridge = 1e-9 * float(x.square().sum() / 12)
    gram = x.T @ x + ridge * torch.eye(12, dtype=F64)
    task = make_task([consumer(gram, 5, torch.arange(12)[:, None], 12)], 12)
    c = task.consumers[0]
    c.weight[:, 4] = 0.0
    c.weight[:, 9] = c.weight[:, 2]
    kernels.path_eliminate([task], core=core)
    assert int(task.status) == -1
    assert int(task.order[0]) == 4
    assert int(task.order[1]) in (2, 9)
    assert float(task.errors[0]) == 0.0
    assert float(task.errors[1]) <= 1e-8 * float(task.errors.sum())
    left = 2 if int(task.order[1]) == 9 else 9
    assert torch.allclose(weight_at(c, 2)[:, left], 2 * c.weight[:, 2], rtol=1e-6)


@pytest.mark.parametrize("core", kernels.CORES)
def test_exact_ties_go_to_the_lowest_index(core: str) -> None:
    task = make_task([consumer(torch.eye(20, dtype=F64), 3, torch.arange(20)[:, None], 20)], 20)
    task.consumers[0].weight.fill_(1.0)
    kernels.path_eliminate([task], core=core)
    assert task.order.tolist() == list(range(20))


def check_against_right_looking(task: PathTask, tolerance: float) -> None:
    """Order, errors and final weights after the forced units have left, and those units' errors in all."""
    c, steps, count = task.consumers[0], len(task.order), len(task.forced)
    forced = task.forced if count else None
    order, errors, weight = reference.eliminate_right_looking(c.basis, c.weight, c.columns, steps - count, forced)
    assert int(task.status) == -1
    assert task.order.tolist() == task.forced.tolist() + order
    want = torch.tensor(errors, dtype=F64)
    assert (task.errors[count:] - want).abs().max() <= tolerance * want.max()
    gone = c.columns[task.forced].flatten()
    own = c.weight[:, gone].T
    together = (torch.linalg.solve(c.basis[gone][:, gone], own) * own).sum()
    assert (task.errors[:count].sum() - together).abs() <= tolerance * together
    assert (weight_at(c, steps) - weight).norm() <= tolerance * c.weight.norm()


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize(
    ("units", "taps", "outputs"),
    [(150, 1, 40), (60, 4, 30), (40, 9, 70), (150, 1, 300), (60, 4, 600), (40, 9, 1100), (12, 64, 96), (6, 128, 70)],
)
def test_long_paths_against_the_right_looking_form(units: int, taps: int, outputs: int, core: str) -> None:
    """Long enough for several panels and for columns of units that left to be dropped, in both forms."""
    gram = random_gram(units * taps + 7)
    task = make_task([consumer(gram, outputs, pick_columns(units, taps, len(gram)), units)], units)
    kernels.path_eliminate([task], core=core)
    tolerance = bound([gram])
    check_against_right_looking(task, tolerance)
    c = task.consumers[0]
    for step in (1, units // 2):
        gone = c.columns[task.order[:step]].flatten()
        assert weight_at(c, step)[:, gone].abs().max() <= tolerance * c.weight.abs().max()
        assert bool((c.factor[step * taps :, gone] == 0).all())


@pytest.mark.parametrize(
    ("units", "taps", "outputs", "forced", "steps"),
    [(512, 9, 48, 64, 90), (1500, 1, 30, 150, 200), (1500, 1, 1600, 150, 200)],
)
def test_large_paths_against_the_right_looking_form(
    units: int, taps: int, outputs: int, forced: int, steps: int
) -> None:
    """Past several panels and a change of columns; P is the identity and a few directions, so well conditioned."""
    torch.set_num_threads(2)
    features = units * taps
    directions = torch.randn(features, 20, dtype=F64) / 20
    basis = torch.addmm(torch.eye(features, dtype=F64), directions, directions.T)
    rows = steps * taps
    c = PathConsumer(
        basis=basis,
        weight=torch.randn(outputs, features, dtype=F64),
        columns=torch.arange(features).reshape(units, taps),
        scale=1.0,
        factor=torch.empty(rows, features, dtype=F64),
        residual=torch.empty(rows, outputs, dtype=F64),
    )
    task = make_task([c], steps, torch.randperm(units)[:forced].tolist())
    _native.path_eliminate([task])
    condition = 1 + float(torch.linalg.matrix_norm(directions, 2)) ** 2
    check_against_right_looking(task, 100 * features * EPS * condition)


def test_threads_do_not_change_a_bit() -> None:
    tasks = []
    for units, taps, outputs in [(120, 9, 60), (200, 1, 30), (30, 4, 20), (150, 1, 500), (40, 4, 400)]:
        gram = random_gram(units * taps)
        columns = pick_columns(units, taps, len(gram))
        tasks.append(make_task([consumer(gram, outputs, columns, units)], units))
    results = []
    for threads, together in [(1, True), (2, True), (3, False), (1, False)]:
        torch.set_num_threads(threads)
        for batch in [tasks] if together else [[task] for task in tasks]:
            _native.path_eliminate(batch)
        results.append(
            [
                t.clone()
                for task in tasks
                for t in (
                    task.order,
                    task.errors,
                    task.consumers[0].factor,
                    task.consumers[0].residual,
                )
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("core", kernels.CORES)
def test_company_does_not_change_a_bit(core: str) -> None:
    """Tasks of all kinds together and one by one: paths of different lengths, several taps, one that fails."""
    tasks = []
    for units, taps, extra, outputs, steps in [(14, 9, 2, 9, 14), (140, 1, 0, 3, 135), (3, 20, 0, 70, 2)]:
        gram = random_gram(units * taps + extra)
        forced = [*range(8, 138), 7] if units == 140 else []
        tasks.append(make_task([consumer(gram, outputs, pick_columns(units, taps, len(gram)), steps)], steps, forced))
        tasks[-1].consumers.append(consumer(random_gram(units), 2, pick_columns(units, 1, units), steps, 0.1))
    tasks[1].consumers[1].basis = torch.eye(140, dtype=F64)
    tasks[1].consumers[1].basis.diagonal()[tasks[1].consumers[1].columns[7]] = -1.0
    results = []
    for batches in [[tasks], [[task] for task in tasks[::-1]]]:
        for batch in batches:
            kernels.path_eliminate(batch, core=core)
        outputs = [(t.order, t.errors, t.status) for t in tasks]
        outputs += [(c.factor, c.residual) for t in tasks for c in t.consumers]
        results.append([value.clone() for group in outputs for value in group])
    assert [int(task.status) for task in tasks] == [-1, 130, -1]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("core", kernels.CORES)
def test_indefinite_pivot_stops_the_path(core: str) -> None:
    """The last consumer fails at the third step: nothing is left of what the others did for it."""
    good, bad = torch.eye(6, dtype=F64), torch.eye(6, dtype=F64)
    bad[5, 5] = -1.0
    consumers = [consumer(g, m, torch.arange(6)[:, None], 6) for g, m in ((good, 2), (good, 80), (good, 2))]
    consumers[2].basis = bad
    task = make_task(consumers, 6, [1, 0, 5])
    kernels.path_eliminate([task], core=core)
    assert int(task.status) == 2
    assert task.order[:2].tolist() == [1, 0]
    for c in consumers:
        assert bool((c.residual[2:] == 0).all()) and bool((c.factor[2:] == 0).all())
        assert torch.allclose(weight_at(c, 2)[:, 2:], c.weight[:, 2:])


@pytest.mark.parametrize("core", kernels.CORES)
def test_an_indefinite_unit_is_the_last_choice(core: str) -> None:
    basis = torch.eye(4, dtype=F64)
    basis[0, 0] = -1.0
    c = consumer(torch.eye(4, dtype=F64), 2, torch.arange(4)[:, None], 4)
    c.basis = basis
    task = make_task([c], 4)
    kernels.path_eliminate([task], core=core)
    assert int(task.status) == 3
    assert 0 not in task.order[:3].tolist()


@pytest.mark.parametrize("core", kernels.CORES)
def test_empty(core: str) -> None:
    kernels.path_eliminate([], core=core)
    for units, features in [(0, 0), (0, 5), (4, 4)]:
        gram = random_gram(features)
        columns = torch.arange(units)[:, None].contiguous()
        task = make_task([consumer(gram, 3, columns, 0)], 0)
        kernels.path_eliminate([task], core=core)
        assert int(task.status) == -1
