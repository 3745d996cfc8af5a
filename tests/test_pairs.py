"""pair_scan against the total error with every pair, written out anew before each step."""

from __future__ import annotations

import copy

import kernels
import pytest
import reference
import torch
from torch import Tensor

from reapx import _native
from reapx._native import PairConsumer, PairTask

F64 = torch.float64
EPS = torch.finfo(F64).eps


def random_gram(size: int) -> Tensor:
    """Channels that resemble each other, with both signs, so that gains are far from 0."""
    x = torch.randn(2 * size + 5, size, dtype=F64)
    x += torch.randn(len(x), 1, dtype=F64) * torch.randn(size, dtype=F64)
    return x.T @ x


def shuffled(units: int, taps: int, features: int) -> Tensor:
    return torch.randperm(features)[: units * taps].reshape(units, taps).contiguous()


def in_order(units: int, taps: int, features: int) -> Tensor:
    """The last of the features."""
    return torch.arange(features - units * taps, features).reshape(units, taps)


def consumer(gram: Tensor, outputs: int, columns: Tensor, steps: int, scale: float = 1.0) -> PairConsumer:
    weight = torch.randn(outputs, len(gram), dtype=F64)
    return PairConsumer(gram, weight, columns, scale, torch.full((steps,), torch.nan, dtype=F64))


def make_task(consumers: list[PairConsumer], steps: int) -> PairTask:
    units = len(consumers[0].columns)
    return PairTask(
        consumers,
        table=torch.full((units, units), torch.nan, dtype=F64),
        removed=torch.full((steps,), -7),
        partner=torch.full((steps,), -7),
        errors=torch.full((steps,), torch.nan, dtype=F64),
    )


def plain_task(gram: Tensor, outputs: int, taps: int, steps: int) -> PairTask:
    return make_task([consumer(gram, outputs, in_order(len(gram) // taps, taps, len(gram)), steps)], steps)


def run_and_check(task: PairTask, core: str = "") -> None:
    """The table; of each step its error, its gains and that no pair was better; the weights and their error."""
    grams, columns = [c.gram for c in task.consumers], [c.columns for c in task.consumers]
    scales, starts = [c.scale for c in task.consumers], [c.weight.clone() for c in task.consumers]
    kernels.pair_scan([task], core=core)
    weights, moved = [start.clone() for start in starts], [0.0] * len(starts)
    alive = torch.ones(len(columns[0]), dtype=torch.bool)
    rounding = 0.0
    for step in range(len(task.removed) + 1):
        pairs = reference.pair_errors(grams, starts, weights, columns, moved)
        table = reference.pair_table(pairs, scales)
        bound = (pairs.error_bounds * torch.tensor(scales, dtype=F64)[:, None, None]).sum(0)
        if step == 0:
            assert task.table is not None
            assert bool(task.table.diagonal().isinf().all())
            off = ~torch.eye(len(table), dtype=torch.bool)
            assert bool(((task.table - table).abs() <= bound)[off].all())
        if step == len(task.removed):
            break
        q, p = int(task.removed[step]), int(task.partner[step])
        assert alive[q] and alive[p] and q != p
        assert step > 0 or task.errors[0] == task.table[q, p] == task.table.min()  # type: ignore[index,union-attr]
        assert table[q, p] - bound[q, p] <= (table + bound)[alive][:, alive].min()
        assert (task.errors[step] - table[q, p]).abs() <= bound[q, p]
        rounding += float(bound[q, p])
        for j, c in enumerate(task.consumers):
            assert (c.gains[step] - pairs.gains[j, q, p]).abs() <= pairs.gain_bounds[j, q, p]
            moved[j] += (1 + abs(float(c.gains[step]))) * float(weights[j][:, columns[j][q]].norm())
        # On with the kernel's own gains, so that only the rounding of this step is looked at.
        reference.unify(weights, columns, q, p, [float(c.gains[step]) for c in task.consumers])
        alive[q] = False
    for c, weight in zip(task.consumers, weights, strict=True):
        size = float(weight.abs().max()) * float(1 + c.gains.abs().amax()) if c.gains.numel() and weight.numel() else 0
        assert bool(((c.weight - weight).abs() <= len(c.gains) * EPS * size).all())
        assert bool((c.weight[:, c.columns[task.removed].flatten()] == 0).all())
    assert abs(float(task.errors.sum()) - error_of(task, starts)) <= rounding


def error_of(task: PairTask, starts: list[Tensor]) -> float:
    """The error of the weights at the end."""
    each = zip(task.consumers, starts, strict=True)
    return sum(c.scale * float(reference.total_error(c.gram, c.weight - start)) for c, start in each)


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize(
    ("units", "taps", "extra", "outputs", "steps"),
    [
        (1, 1, 0, 3, 0),
        (2, 1, 0, 3, 1),
        (7, 1, 2, 4, 6),
        (9, 4, 0, 5, 8),
        (6, 9, 3, 16, 5),
        (17, 2, 1, 17, 16),
        (25, 1, 0, 6, 24),
        (12, 3, 5, 1, 5),
        (3, 25, 0, 8, 2),
        (2, 70, 0, 3, 1),
        (5, 2, 0, 0, 4),
        (4, 0, 3, 2, 3),
    ],
)
def test_every_step_is_the_best(units: int, taps: int, extra: int, outputs: int, steps: int, core: str) -> None:
    gram = random_gram(units * taps + extra)
    for columns in (shuffled(units, taps, len(gram)), in_order(units, taps, len(gram))):
        run_and_check(make_task([consumer(gram, outputs, columns, steps)], steps), core)


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize(("units", "many"), [(11, (1, 4, 9)), (19, (1, 1, 1))])
def test_several_consumers(units: int, many: tuple[int, ...], core: str) -> None:
    """With different taps, and with one tap each, where rows of pairs may wait."""
    steps, consumers = units - 1, []
    each = [(5, 0.5, in_order), (3, 2.0, shuffled), (8, 0.01, in_order)]
    for taps, (outputs, scale, pick) in zip(many, each, strict=True):
        features = units * taps + 2
        consumers.append(consumer(random_gram(features), outputs, pick(units, taps, features), steps, scale))
    run_and_check(make_task(consumers, steps), core)


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize("taps", [1, 4, 9])
def test_a_duplicate_costs_nothing(taps: int, core: str) -> None:
    """Whatever the places of the two: exactly nothing, at a gain of exactly 1."""
    units = 13
    for first, second in [(2, 12), (0, 1), (8, 11)]:
        task = plain_task(random_gram(units * taps), 5, taps, 1)
        c = task.consumers[0]
        c.gram[c.columns[second]] = c.gram[c.columns[first]]
        c.gram[:, c.columns[second]] = c.gram[:, c.columns[first]]
        kept = c.weight[:, c.columns[first]] + c.weight[:, c.columns[second]]
        kernels.pair_scan([task], core=core)
        assert (int(task.removed), int(task.partner)) == (first, second)
        assert float(task.errors) == 0.0 and float(c.gains) == 1.0
        assert torch.equal(c.weight[:, c.columns[second]], kept)


@pytest.mark.parametrize("core", kernels.CORES)
def test_a_negative_multiple_has_its_negative_gain(core: str) -> None:
    """x_1 = -2 x_4: unit 4 emulates unit 1 at gain -2, or 1 emulates 4 at -1/2."""
    x = torch.randn(50, 6, dtype=F64)
    x[:, 1] = -2 * x[:, 4]
    task = plain_task(x.T @ x, 3, 1, 1)
    y = x @ task.consumers[0].weight.T
    kernels.pair_scan([task], core=core)
    gain = {(1, 4): -2.0, (4, 1): -0.5}[int(task.removed), int(task.partner)]
    c = task.consumers[0]
    assert abs(float(c.gains) - gain) <= 4 * len(x) * EPS
    assert (x @ c.weight.T - y).norm() <= 10 * len(x) * EPS * y.norm()


@pytest.mark.parametrize("core", kernels.CORES)
def test_dead_channels(core: str) -> None:
    """A dead channel leaves first, at no cost; it can emulate nothing, at a gain of 0."""
    gram = random_gram(24)
    gram[4:6] = gram[:, 4:6] = 0.0
    gram[22:] = gram[:, 22:] = 0.0
    task = plain_task(gram, 5, 2, 11)
    run_and_check(copy.deepcopy(task), core)
    before = task.consumers[0].weight.clone()
    kernels.pair_scan([task], core=core)
    assert task.removed[:2].tolist() == [2, 11]
    assert task.errors[:2].tolist() == [0.0, 0.0] and task.errors[2] > 0
    c = task.consumers[0]
    assert c.gains[:2].tolist() == [0.0, 0.0]
    assert task.table is not None
    for q in (0, 7):
        own = c.columns[q]
        want = float((before[:, own].T @ before[:, own] * gram[own][:, own]).sum())
        assert abs(float(task.table[q, 2]) - want) <= 100 * EPS * float(before[:, own].square().sum() * gram.max())


@pytest.mark.parametrize("core", kernels.CORES)
def test_a_unit_that_nothing_reads_leaves_first(core: str) -> None:
    task = plain_task(random_gram(24), 3, 4, 5)
    task.consumers[0].weight[:, 12:16] = 0.0
    run_and_check(task, core)
    assert int(task.removed[0]) == 3 and float(task.errors[0]) == 0.0


@pytest.mark.parametrize("core", kernels.CORES)
def test_ties_go_to_the_lowest_pair(core: str) -> None:
    """Orthogonal channels of one norm, all weights 1: every error is 2 and every gain 0."""
    for taps in (1, 3):
        task = plain_task(torch.eye(12 * taps, dtype=F64), 2, taps, 11)
        task.consumers[0].weight.fill_(1.0)
        kernels.pair_scan([task], core=core)
        assert task.removed.tolist() == list(range(11))
        assert task.partner.tolist() == list(range(1, 12))
        assert task.errors.tolist() == [2.0 * taps] * 11
        assert task.consumers[0].gains.tolist() == [0.0] * 11


@pytest.mark.parametrize("core", kernels.CORES)
def test_a_partner_that_leaves_is_replaced_by_the_next_best(core: str) -> None:
    """Every channel follows channel 0 closely, and channel 0 is the first to leave: all choose again."""
    x = torch.randn(100, 20, dtype=F64) * 0.1
    x[:, 1:] += x[:, :1] * 20
    task = plain_task(x.T @ x, 3, 1, 19)
    task.consumers[0].weight[:, 0] *= 1e-6
    run_and_check(task, core)
    assert int(task.removed[0]) == 0
    assert task.table is not None
    assert int((task.table[1:].argmin(1) == 0).sum()) > 10


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_never_chosen_first(bad: float, core: str) -> None:
    """Channel 3 correlates to something not finite with channel 8, and channel 5 has no finite norm."""
    gram = random_gram(11)
    gram[3, 8] = gram[8, 3] = gram[5, 5] = bad
    task = plain_task(gram, 4, 1, 10)
    kernels.pair_scan([task], core=core)
    assert task.table is not None
    assert bool(task.table[[3, 8, 5], [8, 3, 0]].isinf().all())
    assert not task.table.isnan().any()
    steps = [{int(q), int(p)} for q, p in zip(task.removed, task.partner, strict=True)]
    assert {3, 8} not in steps
    # Once 3 or 8 has changed, what the other one does to the total is not finite: it stays, and so does 5.
    assert bool(task.errors[:8].isfinite().all())
    assert bool(task.consumers[0].weight.isfinite().all())


@pytest.mark.parametrize("core", kernels.CORES)
def test_all_errors_infinite(core: str) -> None:
    task = plain_task(torch.full((5, 5), torch.nan, dtype=F64), 4, 1, 4)
    left = task.consumers[0].weight[:, 4].clone()
    kernels.pair_scan([task], core=core)
    assert task.removed.tolist() == [0, 1, 2, 3] and task.partner.tolist() == [1, 2, 3, 4]
    assert bool(task.errors.isinf().all())
    assert task.consumers[0].gains.tolist() == [0.0] * 4
    assert torch.equal(task.consumers[0].weight[:, 4], left)


def test_removal_with_refit_never_costs_more() -> None:
    """For least-squares weights: REAP's error of removing q is at most that of any p emulating q."""
    for taps in (1, 3):
        gram = random_gram(8 * taps)
        task = plain_task(gram, 4, taps, 0)
        c = task.consumers[0]
        _native.pair_scan([task])
        assert task.table is not None
        condition = float(torch.linalg.cond(gram))
        for q, own in enumerate(c.columns):
            kept = torch.ones(len(gram), dtype=torch.bool)
            kept[own] = False
            _, removal = reference.refit(gram, c.weight, kept.nonzero().flatten())
            assert removal <= float(task.table[q].min()) * (1 + len(gram) * EPS * condition)


def test_threads_do_not_change_a_bit() -> None:
    """A task that all threads share, one on columns in any order, and small ones side by side."""
    grams = [random_gram(size) for size in (1035, 200, 90, 60)]
    tasks = [
        make_task([consumer(grams[0], 20, in_order(115, 9, 1035), 60)], 60),
        make_task([consumer(grams[1], 10, shuffled(200, 1, 200), 199)], 199),
        make_task(
            [consumer(grams[2], 10, shuffled(20, 4, 90), 19), consumer(grams[3], 7, in_order(20, 3, 60), 19)], 19
        ),
    ]
    results = []
    for threads, together in [(1, True), (2, True), (3, True), (3, False)]:
        torch.set_num_threads(threads)
        run = copy.deepcopy(tasks)
        for batch in [run] if together else [[task] for task in run]:
            _native.pair_scan(batch)
        results.append([t for task in run for t in tensors_of(task)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("core", kernels.CORES)
def test_tasks_side_by_side_are_as_alone(core: str) -> None:
    """With other sizes, consumers and numbers of steps: to the bit."""
    grams = [random_gram(size) for size in (70, 63, 5, 80)]
    tasks = [
        make_task([consumer(grams[0], 6, in_order(70, 1, 70), 4)], 4),
        make_task([consumer(grams[0], 3, in_order(1, 1, 70), 0)], 0),
        make_task([consumer(grams[1], 10, in_order(7, 9, 63), 6), consumer(grams[3], 9, shuffled(7, 2, 80), 6)], 6),
        make_task([consumer(grams[2], 2, in_order(5, 1, 5), 0)], 0),
        make_task([consumer(grams[3], 40, in_order(20, 4, 80), 19)], 19),
    ]
    alone = copy.deepcopy(tasks)
    kernels.pair_scan(tasks, core=core)
    for task in alone:
        kernels.pair_scan([task], core=core)
    for task, other in zip(tasks, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(task), tensors_of(other), strict=True))


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize(("units", "taps", "steps"), [(1030, 1, 3), (90, 3, 40), (65, 1, 64), (64, 6, 9)])
def test_many_units_leave_in_one_order(units: int, taps: int, steps: int, core: str) -> None:
    """In the order of the first core, which other tests compare to the reference; here it would take too long."""
    gram = random_gram(units * taps)
    task = make_task([consumer(gram, 5, in_order(units, taps, len(gram)), steps)], steps)
    c, before, want = task.consumers[0], task.consumers[0].weight.clone(), copy.deepcopy(task)
    kernels.pair_scan([want], core=kernels.CORES[0])
    kernels.pair_scan([task], core=core)
    assert torch.equal(task.removed, want.removed) and torch.equal(task.partner, want.partner)
    assert want.table is not None and task.table is not None
    size = float(before.square().sum() * gram.diagonal().max())
    assert bool((task.table - want.table).abs().fill_diagonal_(0).max() <= 8 * taps**2 * EPS * size)
    now = before.clone()
    for q, p, gain in zip(task.removed, task.partner, c.gains, strict=True):
        reference.unify([now], [c.columns], int(q), int(p), [float(gain)])
    assert (c.weight - now).abs().max() <= steps * EPS * before.abs().max() * (1 + c.gains.abs().max())


def tensors_of(task: PairTask) -> list[Tensor]:
    assert task.table is not None
    outputs = [task.table, task.removed, task.partner, task.errors]
    return outputs + [t for c in task.consumers for t in (c.weight, c.gains)]


@pytest.mark.parametrize("core", kernels.CORES)
def test_the_table_is_optional_and_changes_nothing(core: str) -> None:
    task = plain_task(random_gram(36), 5, 3, 8)
    without = copy.deepcopy(task)
    without.table = None
    kernels.pair_scan([task, without], core=core)
    assert torch.equal(task.removed, without.removed) and torch.equal(task.errors, without.errors)
    assert torch.equal(task.consumers[0].weight, without.consumers[0].weight)


@pytest.mark.parametrize("core", kernels.CORES)
def test_without_steps_weights_stay(core: str) -> None:
    task = plain_task(random_gram(10), 5, 1, 0)
    before = task.consumers[0].weight.clone()
    run_and_check(task, core)
    assert torch.equal(task.consumers[0].weight, before)


@pytest.mark.parametrize("core", kernels.CORES)
def test_empty(core: str) -> None:
    kernels.pair_scan([], core=core)
    for units, features, outputs in [(0, 0, 0), (0, 5, 2), (1, 3, 0), (1, 1, 1)]:
        run_and_check(make_task([consumer(random_gram(features), outputs, in_order(units, 1, features), 0)], 0), core)
