"""reapx.kernels, as a stranger calls it, against float64 references, naive loops and the layers themselves."""

from __future__ import annotations

import itertools

import kernels
import pytest
import reference
import torch
import torch.nn.functional as F
from torch import Tensor

import reapx
from reapx.kernels import GramMoments, ReapPath, gram_matrix, least_squares, pair_errors, reap_path, zero_rows

F64 = torch.float64
EPS = torch.finfo(F64).eps
DEVICES = pytest.mark.parametrize("device", kernels.DEVICES)


def rows_of(count: int, features: int) -> Tensor:
    """(count, features) float64 with correlated columns."""
    return torch.randn(count, features, dtype=F64) @ (torch.eye(features, dtype=F64) + 0.3)


def columns_of(units: int, taps: int) -> Tensor:
    return torch.arange(units * taps).reshape(units, taps)


def rounding(gram: Tensor) -> float:
    """Relative error of what is solved for with a Gram matrix in float64."""
    return 100 * len(gram) * EPS * float(torch.linalg.cond(gram))


def squared_error(x: Tensor, y: Tensor, weight: Tensor) -> float:
    return float((y - x @ weight.T).square().sum())


# least_squares


@DEVICES
def test_least_squares_on_kept_columns(device: str) -> None:
    x, y, old = rows_of(50, 7), torch.randn(50, 3, dtype=F64), torch.randn(3, 7, dtype=F64)
    gram, cross, kept = x.T @ x, y.T @ x, [5, 0, 3]
    found = least_squares(gram.to(device), cross.to(device), kept).cpu()
    wanted = torch.linalg.lstsq(x[:, kept], y).solution.T
    assert float((found - wanted).abs().max()) <= rounding(gram) * float(wanted.abs().max())

    found = least_squares(gram.to(device), cross.to(device), damping=0.5, reference=old.to(device)).cpu()
    ridge = 0.5 * float(gram.diagonal().mean())
    wanted = torch.linalg.solve(gram + ridge * torch.eye(7, dtype=F64), (cross + ridge * old).T).T
    assert float((found - wanted).abs().max()) <= rounding(gram) * float(wanted.abs().max())


def test_dead_columns_are_no_trouble_when_not_kept() -> None:
    x, y = rows_of(50, 4), torch.randn(50, 2, dtype=F64)
    x[:, 2] = 0
    gram, cross = x.T @ x, y.T @ x
    with pytest.raises(reapx.NumericalError, match="singular at column 2, which is zero in X"):
        least_squares(gram, cross, [0, 2])
    assert least_squares(gram, cross, [0, 1, 3]).shape == (2, 3)


# reap_path

CASES = [(1, 9, 4), (1, 1, 1), (4, 5, 3), (9, 4, 11)]  # taps, units, outputs


@DEVICES
@pytest.mark.parametrize(("taps", "units", "outputs"), CASES)
def test_each_step_is_the_best_of_all_that_are_tried(taps: int, units: int, outputs: int, device: str) -> None:
    x = rows_of(3 * taps * units, taps * units)
    gram, weight, columns = x.T @ x, torch.randn(outputs, taps * units, dtype=F64), columns_of(units, taps)
    path = reap_path(gram.to(device), weight.to(device), taps)
    order, errors = path.order.tolist(), path.errors.tolist()
    tables, _, fitted = reference.eliminate_naive([gram], [weight], [columns], [1.0], units, order)
    tolerance = rounding(gram) * squared_error(x, x @ weight.T, 0 * weight)
    assert sorted(order) == list(range(units)) and errors[0] == 0
    assert torch.equal(path.errors, path.damped_errors)
    for step, (table, unit) in enumerate(zip(tables, order, strict=True)):
        assert table[unit] <= min(table) + tolerance
        assert abs(errors[step + 1] - table[unit]) <= tolerance
        now = path.weights(step + 1).cpu()
        assert float((now - fitted[step][0]).abs().max()) <= rounding(gram) * float(weight.abs().max())
        kept = sorted(set(range(units)) - set(order[: step + 1]))
        assert path.kept(step + 1).tolist() == kept
        assert path.columns(step + 1).tolist() == columns[kept].flatten().tolist()
        assert not now[:, columns[order[: step + 1]].flatten()].any()


@DEVICES
@pytest.mark.parametrize(("taps", "units"), [(1, 8), (3, 4)])
@pytest.mark.parametrize("damping", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("given", ["weight", "cross", "both"])
def test_errors_are_those_of_the_weights(given: str, damping: float, taps: int, units: int, device: str) -> None:
    x, y = rows_of(60, taps * units), torch.randn(60, 5, dtype=F64)
    old = torch.randn(5, taps * units, dtype=F64)
    if given == "weight":
        y = x @ old.T
    gram, cross, pull = x.T @ x, y.T @ x, old if given != "cross" else torch.zeros_like(old)
    path = reap_path(
        gram.to(device),
        old.to(device) if given != "cross" else None,
        taps,
        units - 1,
        damping,
        cross=cross.to(device) if given != "weight" else None,
        target_square=y.square().sum(0).to(device) if given != "weight" else None,
    )
    assert path.ridge == pytest.approx(damping * float(gram.diagonal().mean()), rel=1e-14)
    tolerance = rounding(gram) * float(y.square().sum())

    def damped(weight: Tensor) -> float:
        return squared_error(x, y, weight) + path.ridge * float((weight - pull).square().sum())

    for count in range(units):
        weight, columns = path.weights(count).cpu(), path.columns(count)
        assert abs(squared_error(x, y, weight) - float(path.errors[count])) <= tolerance
        assert abs(damped(weight) - damped(path.weights(0).cpu()) - float(path.damped_errors[count])) <= tolerance
        wanted = least_squares(gram, cross, columns.cpu(), damping, reference=pull)
        size = float(pull.abs().max() + wanted.abs().max())
        assert float((weight[:, columns.cpu()] - wanted).abs().max()) <= rounding(gram) * size


def test_damped_steps_are_the_best_ones_of_the_damped_problem() -> None:
    x, y = rows_of(40, 8), torch.randn(40, 3, dtype=F64)
    gram, cross = x.T @ x, y.T @ x
    path, removed = reap_path(gram, cross=cross, taps=2, damping=0.3), []

    def damped(kept: list[int]) -> float:
        columns = columns_of(4, 2)[kept].flatten()
        weight = least_squares(gram, cross, columns, 0.3)
        return squared_error(x[:, columns], y, weight) + path.ridge * float(weight.square().sum())

    for unit in path.order.tolist():
        left = [u for u in range(4) if u not in removed]
        costs = {u: damped([v for v in left if v != u]) for u in left}
        assert costs[unit] == pytest.approx(min(costs.values()), rel=rounding(gram))
        removed.append(unit)


def test_without_the_targets_square_errors_are_what_removals_add() -> None:
    x, y = rows_of(40, 6), torch.randn(40, 2, dtype=F64)
    gram, cross = x.T @ x, y.T @ x
    added = reap_path(gram, cross=cross, damping=0.2)
    whole = reap_path(gram, cross=cross, damping=0.2, target_square=float(y.square().sum()))
    assert added.errors[0] == 0 and torch.equal(added.order, whole.order)
    difference = whole.errors - added.errors - squared_error(x, y, added.weights(0))
    assert float(difference.abs().max()) <= rounding(gram) * float(y.square().sum())


def test_the_errors_are_those_of_the_layer() -> None:
    """A convolution whose input loses channels, from the images themselves."""
    x, weight = torch.randn(4, 6, 8, 8), torch.randn(5, 6, 3, 3)
    path = reap_path(gram_matrix(x, 3, padding=1).gram, weight.flatten(1), taps=9, steps=3)
    kept = path.kept(3)
    assert len(kept) == 3
    smaller = path.weights(3)[:, path.columns(3)].reshape(5, 3, 3, 3)
    images = x.to(F64)
    change = F.conv2d(images[:, kept], smaller, padding=1) - F.conv2d(images, weight.to(F64), padding=1)
    assert float(change.square().sum()) == pytest.approx(float(path.errors[3]), rel=1e-5)  # float32 products


def test_units_that_are_named_leave_first() -> None:
    x, weight = rows_of(50, 10), torch.randn(3, 10, dtype=F64)
    gram = x.T @ x
    path = reap_path(gram, weight, 2, first=[3, 1])
    assert path.order[:2].tolist() == [3, 1] and sorted(path.order.tolist()) == list(range(5))
    given = reap_path(gram, weight, 2, steps=2, first=torch.tensor([3, 1]))
    assert given.order.tolist() == [3, 1]
    _, error = reference.refit(gram, weight, torch.tensor([0, 1, 4, 5, 8, 9]))
    assert float(given.errors[2]) == pytest.approx(error, rel=rounding(gram))


def test_dead_units_leave_first_and_cost_nothing() -> None:
    x, weight = rows_of(50, 8), torch.randn(3, 8, dtype=F64)
    x[:, 4:6] = 0
    weight[:, 4:6] = 100
    path = reap_path(x.T @ x, weight, 2, damping=1e-2)
    assert int(path.order[0]) == 2
    assert float(path.errors[1]) <= 1e-12 * float(path.errors[-1])
    assert reap_path(x.T @ x, weight, 2, 2, damping=1e-2, first=[0]).order.tolist() == [0, 2]


def test_a_copy_costs_almost_nothing_under_damping() -> None:
    x, weight = rows_of(50, 5), torch.randn(3, 5, dtype=F64)
    x[:, 4] = x[:, 1]
    path = reap_path(x.T @ x, weight, damping=1e-6)
    assert int(path.order[0]) in (1, 4)
    assert float(path.errors[1]) <= 1e-9 * float(path.errors[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_arguments_are_converted_and_never_changed(dtype: torch.dtype) -> None:
    x = torch.randn(60, 6).to(dtype)
    gram, weight = x.T @ x, torch.randn(4, 6).to(dtype).requires_grad_()
    before = gram.clone(), weight.detach().clone()
    path, exact = reap_path(gram, weight), reap_path((gram.double() + gram.double().T) / 2, weight.double())
    assert torch.equal(path.errors, exact.errors) and path.errors.dtype == F64
    assert torch.equal(gram, before[0]) and torch.equal(weight, before[1])
    found = path.weights(2)
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(path.weights(2), found) and torch.equal(path.weights(0).to(dtype), before[1])


def test_layouts_do_not_matter_to_matrices() -> None:
    x, weight = rows_of(50, 6), torch.randn(6, 4, dtype=F64).T
    gram = x.T @ x
    gram = (gram + gram.T) / 2
    assert not weight.is_contiguous()
    assert torch.equal(reap_path(gram.T, weight).errors, reap_path(gram, weight.contiguous()).errors)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x, weight = torch.randn(500, 96), torch.randn(40, 96)

    def found() -> list[Tensor]:
        gram = gram_matrix(x).gram
        path = reap_path(gram, weight, 3, damping=1e-2)
        return [
            gram,
            path.order,
            path.weights(20),
            pair_errors(gram, weight, 3),
            least_squares(gram, weight @ gram.float()),
        ]

    single = found()
    torch.set_num_threads(3)
    assert all(itertools.starmap(torch.equal, zip(single, found(), strict=True)))


def test_sizes_zero() -> None:
    none, weight = torch.empty(0, 0), torch.empty(3, 0)
    path = reap_path(none, weight)
    assert path.order.numel() == 0 and path.errors.tolist() == [0] and path.weights(0).shape == (3, 0)
    assert pair_errors(none, weight).shape == (0, 0)
    assert least_squares(torch.eye(2), torch.ones(3, 2), []).shape == (3, 0)
    path = reap_path(torch.eye(2), torch.empty(0, 2), steps=0)
    assert path.weights(0).shape == (0, 2) and path.kept(0).tolist() == [0, 1]


# pair_errors


@DEVICES
@pytest.mark.parametrize(("taps", "units"), [(1, 7), (3, 4)])
def test_pair_errors(taps: int, units: int, device: str) -> None:
    x, weight, columns = rows_of(60, taps * units), torch.randn(5, taps * units, dtype=F64), columns_of(units, taps)
    gram = x.T @ x
    found = pair_errors(gram.to(device), weight.to(device), taps).cpu()
    wanted = reference.pair_errors([gram], [weight], [weight], [columns], [0.0])
    table, bounds = reference.pair_table(wanted, [1.0]), wanted.error_bounds.sum(0)
    for q, p in itertools.product(range(units), repeat=2):
        assert found[q, p] == table[q, p] if q == p else abs(found[q, p] - table[q, p]) <= bounds[q, p]


def test_the_gain_of_a_pair_is_the_one_in_the_docstring() -> None:
    x, weight = rows_of(60, 4), torch.randn(5, 4, dtype=F64)
    gram = x.T @ x
    table, q, p = pair_errors(gram, weight), 2, 0
    merged = weight.clone()
    merged[:, p] += gram[q, p] / gram[p, p] * weight[:, q]
    merged[:, q] = 0
    assert squared_error(x, x @ weight.T, merged) == pytest.approx(float(table[q, p]), rel=rounding(gram))


# zero_rows


@DEVICES
def test_zero_rows(device: str) -> None:
    weight = torch.randn(6, 3, 2, 2, device=device)
    weight[1] = 0
    weight[3] = -1e-4
    weight[4] = 0
    weight[4, 2, 1, 1] = torch.nan
    assert zero_rows(weight).tolist() == [False, True, False, False, False, False]
    assert zero_rows(weight, 1e-3).tolist() == [False, True, False, True, False, False]
    assert zero_rows(weight.half(), 1e-3).tolist() == [False, True, False, True, False, False]
    assert zero_rows(torch.empty(2, 0, device=device)).tolist() == [True, True]


def test_what_is_public() -> None:
    assert reapx.kernels.reap_path is reap_path and "kernels" in reapx.__all__
    assert {"gram_matrix", "least_squares", "reap_path", "pair_errors", "zero_rows"} < set(reapx.kernels.__all__)
    path = reap_path(torch.eye(4), torch.ones(3, 4))
    assert isinstance(path, ReapPath) and isinstance(gram_matrix(torch.ones(2, 4)), GramMoments)
    with pytest.raises(AttributeError):
        path.order = None  # type: ignore[misc]
