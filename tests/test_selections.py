"""Every method of selection: its order against a slow reading of its definition, and what it does with a network."""

from __future__ import annotations

import sys
from itertools import combinations

import pytest
import torch
from graphs import coupled, lively, plain
from torch import Tensor, nn

import reapx
from reapx.moments.measure import measure
from reapx.moments.moments import Moments
from reapx.selection.dpp import _kernel, _sample, dpp_order
from reapx.selection.find_paths import find_paths
from reapx.selection.lasso import lasso_order
from reapx.selection.magnitude import output_norm_order
from reapx.selection.methods import BLIND, SELECTIONS
from reapx.selection.nu import Unification, unify
from reapx.selection.paths.consumers import MeasuredConsumer, measured_consumers
from reapx.selection.thinet import thinet_order

F64 = torch.float64
UNITS = 7


def problem(taps: int, outputs: int = 5, rows: int = 80, seed: int = 0) -> tuple[Tensor, Tensor, MeasuredConsumer]:
    """Inputs (rows, units * taps) that depend on each other, weights, and the reader of both."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, UNITS * taps, dtype=F64, generator=generator)
    x = x + x[:, torch.randperm(x.shape[1], generator=generator)]
    x = x - x.mean(0)
    weight = torch.randn(outputs, UNITS * taps, dtype=F64, generator=generator)
    return x, weight, measured_consumer(x, weight)


def measured_consumer(x: Tensor, weight: Tensor) -> MeasuredConsumer:
    columns = torch.arange(x.shape[1]).reshape(UNITS, -1)
    return MeasuredConsumer(weight, columns, Moments(x.T @ x, x.sum(0), len(x)))


def contributions(x: Tensor, weight: Tensor) -> Tensor:
    """(units, rows * outputs): what each unit adds to the outputs, as a share of their size."""
    parts = [x[:, own] @ weight[:, own].T for own in torch.arange(x.shape[1]).reshape(UNITS, -1)]
    return torch.stack([entry.flatten() for entry in parts]) / (x @ weight.T).norm()


@pytest.mark.parametrize("taps", [1, 3])
def test_thinet_removes_what_adds_up_to_least(taps: int) -> None:
    problems = [problem(taps, seed=seed) for seed in (0, 1)]
    added = torch.cat([contributions(x, weight) for x, weight, _ in problems], 1)
    left: list[int] = []
    for unit in thinet_order([measured for *_, measured in problems], UNITS).tolist():
        costs = {c: float(added[[*left, c]].sum(0).square().sum()) for c in range(UNITS) if c not in left}
        assert costs[unit] <= min(costs.values()) + 1e-12
        left.append(unit)


@pytest.mark.parametrize("taps", [1, 3])
def test_lasso_keeps_the_support_of_some_penalty(taps: int) -> None:
    x, weight, measured = problem(taps)
    added = contributions(x, weight).T
    wanted = added.sum(1)
    penalties = torch.logspace(-6, 0, 400, dtype=F64) * (added.T @ wanted).abs().max()
    steepest = torch.linalg.matrix_norm(added, 2) ** 2
    beta = torch.zeros(UNITS, len(penalties), dtype=F64)  # one column for each penalty
    for _ in range(300):  # proximal gradient
        step = beta - added.T @ (added @ beta - wanted[:, None]) / steepest
        beta = step.sign() * (step.abs() - penalties / steepest).clamp(min=0)
    supports = [frozenset(column.nonzero().flatten().tolist()) for column in (beta.abs() > 1e-9).T]
    for steps in range(1, UNITS):
        stays = frozenset(range(UNITS)) - frozenset(lasso_order([measured], steps).tolist())
        if any(len(support) == UNITS - steps for support in supports):
            assert stays in supports


def test_lasso_needs_no_dead_or_doubled_units() -> None:
    x, weight, _ = problem(2)
    x[:, :2] = 0.0
    x[:, 4:6], weight[:, 4:6] = x[:, 2:4], weight[:, 2:4]
    order = lasso_order([measured_consumer(x, weight)], 2).tolist()
    assert 0 in order and (1 in order or 2 in order)


def test_a_dpp_takes_each_set_by_its_determinant() -> None:
    _, _, measured = problem(2)
    kernel = _kernel(measured.known_moments.gram.reshape(UNITS, 2, UNITS, 2).diagonal(dim1=1, dim2=3).sum(-1))
    sets = list(combinations(range(UNITS), 3))
    weights = torch.stack([torch.linalg.det(kernel[list(one)][:, list(one)]) for one in sets])
    generator, draws = torch.Generator().manual_seed(1), 4000
    found = [tuple(sorted(_sample(kernel, 3, generator))) for _ in range(draws)]
    seen = torch.tensor([found.count(one) for one in sets], dtype=F64)
    expected = draws * weights / weights.sum()
    chi2 = float(((seen - expected).square() / expected).sum())
    assert chi2 < len(sets) + 5 * (2 * len(sets)) ** 0.5


def test_a_dpp_sample_holds_no_twins() -> None:
    x, weight, _ = problem(1)
    x[:, 3], x[:, 6] = x[:, 0], x[:, 1]
    stays = set(range(UNITS)) - set(dpp_order([measured_consumer(x, weight)], 3).tolist())
    assert not {0, 3} <= stays and not {1, 6} <= stays


def test_output_norm_looks_at_outgoing_weights_alone() -> None:
    _, one, _ = problem(3, seed=0)
    _, two, _ = problem(3, outputs=2, seed=1)
    consumers = [MeasuredConsumer(weight, torch.arange(3 * UNITS).reshape(UNITS, 3)) for weight in (one, two)]
    norms = sum(w.reshape(len(w), UNITS, 3).square().sum((0, 2)) / w.square().sum() for w in (one, two))
    assert torch.equal(output_norm_order(consumers, 4), norms.argsort()[:4])  # type: ignore[union-attr]


def test_unified_weights_cost_what_the_pairs_say() -> None:
    x, weight, measured = problem(3)
    task = unify([measured], 1)
    gone, partner, gain = int(task.removed), int(task.partner), float(task.consumers[0].gains)
    own, other = (x[:, 3 * u : 3 * u + 3] for u in (gone, partner))
    entry = weight[:, 3 * gone : 3 * gone + 3].T
    left = own @ entry - gain * other @ entry
    assert float(task.errors) == pytest.approx(float(left.square().sum() / (x @ weight.T).square().sum()), rel=1e-9)
    assert torch.equal(measured.weight, weight)  # the network's stay as they are


# The nets and, for each, one image's shape.
NETS = {
    "residual": coupled.CASES["residual"],
    "concat": coupled.CASES["concat"],
    "channels_last_flatten": coupled.CASES["channels_last_flatten"],
    "grouped": plain.CASES["grouped"],
    "linear": plain.CASES["linear"],
    "conv1d": plain.CASES["conv1d"],
}


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("name", NETS)
def test_orders_are_whole_and_errors_exact(name: str, selection: str) -> None:
    model = lively(NETS[name].build())
    found = reapx.inspect(model, torch.randn(60, *NETS[name].shape))
    for share in (0.0, 0.5):
        widths = {group.name: int(share * group.size) for group in found.groups}
        for refits in (True, False):
            paths = find_paths(
                found._graph, found._images, found.groups, widths, selection, damping=1e-2, positions=None,
                refits=refits,
            )  # fmt: skip
            for group, path in zip(found.groups, paths, strict=True):
                steps = group.size - widths[group.name]
                assert len(path.order) == len(set(path.order.tolist())) == steps
                assert int(path.order.min()) >= 0 and int(path.order.max()) < group.size
                assert (path.own_changes is not None) == (selection in ("nu", "thinet"))
                known = refits or selection not in BLIND
                assert bool(torch.isfinite(path.errors).all()) == known
                if known:
                    assert 0 < path.error(steps) < 1 + 1e-6


@pytest.mark.parametrize("allocation", ["uniform", "pro"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_any_selection_goes_with_any_allocation_and_without_refits(selection: str, allocation: str) -> None:
    model = lively(coupled.CASES["residual"].build())
    images = torch.randn(60, *coupled.CASES["residual"].shape)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = reapx.plan(model, images, budget=reapx.MACs(0.6), allocation=allocation, selection=selection)
    assert f"{selection} selection" in str(plan)
    bare, fitted = plan.apply(reconstruct=False), plan.apply()
    assert bare.gap < 1e-10 and fitted.gap < 1e-10
    assert not bare.fits and fitted.fits
    assert fitted.change < bare.change
    again = reapx.plan(model, images, budget=reapx.MACs(0.6), allocation=allocation, selection=selection)
    assert all(torch.equal(a.removed, b.removed) for a, b in zip(plan.groups, again.groups, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("selection", ["nu", "thinet"])
@pytest.mark.parametrize("name", NETS)
def test_own_weights_beat_plain_removal_and_never_the_fit(name: str, selection: str) -> None:
    model = lively(NETS[name].build())
    found = reapx.inspect(model, torch.randn(60, *NETS[name].shape))
    widths = {group.name: group.size // 2 for group in found.groups}
    kinds = {"damping": 1e-6, "positions": None}
    paths = find_paths(found._graph, found._images, found.groups, widths, selection, refits=True, **kinds)
    for group, path in zip(found.groups, paths, strict=True):
        count = group.size - widths[group.name]
        assert path.own_changes is not None and path.refitted is not None
        for index, entry in enumerate(path.own_changes._consumers):
            removed = entry.weight.clone()
            removed[:, entry.columns[path.order[:count]].flatten()] = 0.0
            gram = _gram_of(found, group.consumers[index])
            own, fitted = path.own_changes.weights(index, [count])[0], path.refitted.weights(index, [count])[0]
            none, mine, best = (_error(w - entry.weight, gram) for w in (removed, own, fitted))
            assert best <= mine * (1 + 1e-3)
            if selection == "thinet":
                assert mine <= none * (1 + 1e-6)


@pytest.mark.parametrize("left", [3, 1, 0])
@pytest.mark.parametrize("name", NETS)
def test_errors_of_unifications_add_up_to_that_of_the_weights(name: str, left: int) -> None:
    """With nobody left, too: the last unit has no partner."""
    model = lively(NETS[name].build())
    found = reapx.inspect(model, torch.randn(60, *NETS[name].shape))
    moments = measure(found._graph, found._images, [c.layer for g in found.groups for c in g.consumers],
                      found._graph.tensors)  # fmt: skip
    for group in found.groups:
        consumers = measured_consumers(found._graph, group, moments)
        count = max(group.size - left, 0)
        own = Unification(found._graph, group, consumers, count)
        assert len(set(own.order.tolist())) == len(own.errors) == count
        errors = [
            measured.scale
            / len(consumers)
            * _error(own.weights(j, [count])[0] - measured.weight, measured.known_moments.gram)
            for j, measured in enumerate(consumers)
        ]
        assert float(own.errors.sum()) == pytest.approx(sum(errors), rel=1e-9, abs=1e-12)


def _gram_of(found: reapx.Inspection, consumer: object) -> Tensor:
    layer = consumer.layer  # type: ignore[attr-defined]
    moments = measure(found._graph, found._images, [layer], found._graph.tensors)
    entry = moments[layer.weight][consumer.conv_group]  # type: ignore[attr-defined]
    return entry.centred(True).gram if _shifts(found, layer) else entry.gram


def _shifts(found: reapx.Inspection, layer: object) -> bool:
    from reapx.capture.tails import tail_of

    return layer.bias is not None or tail_of(found._graph, layer).norm is not None  # type: ignore[attr-defined,arg-type]


def _error(change: Tensor, gram: Tensor) -> float:
    return float(((change @ gram) * change).sum())


class Twins(nn.Module):
    """Every second unit is a multiple of the one before it, some of them negative, all behind no ReLU."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3)
        with torch.no_grad():
            self.one.weight[1::2] = gain * self.one.weight[::2]
            self.one.bias[1::2] = gain * self.one.bias[::2]

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


@pytest.mark.parametrize("gain", [2.0, -0.5])
def test_unification_of_multiples_changes_nothing(gain: float) -> None:
    model = Twins(gain).double().eval()
    images = torch.randn(40, 3, 7, 7, dtype=F64)
    result = reapx.prune(
        model, images, budget=reapx.Params(1.0), allocation="uniform", bounds={"one": (4, 4)}, selection="nu",
        reconstruct=False,
    )  # fmt: skip
    assert result.model.one.out_channels == 4
    assert result.change < 1e-10  # pruning alone would be far off
    bare = reapx.prune(
        model, images, budget=reapx.Params(1.0), allocation="uniform", bounds={"one": (4, 4)}, selection="magnitude",
        reconstruct=False,
    )  # fmt: skip
    assert bare.change > 1e-2


def test_a_constant_goes_to_the_bias() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    with torch.no_grad():
        model[0].weight[2] = 0.0
        model[0].bias[2] = 3.0
    result = reapx.prune(
        model, torch.randn(50, 4, dtype=F64), budget=reapx.Params(1.0), allocation="uniform", bounds={"0": (5, 5)},
        selection="nu", reconstruct=False,
    )  # fmt: skip
    assert result.plan.groups[0].removed.tolist() == [2]
    assert result.change < 1e-10


def test_no_method_leaves_much_less_than_reap_after_refits() -> None:
    model = lively(coupled.CASES["residual"].build())
    images = torch.randn(100, *coupled.CASES["residual"].shape)
    found = reapx.inspect(model, images)
    widths = {group.name: group.size // 2 for group in found.groups}
    totals = {}
    for selection in SELECTIONS:
        paths = find_paths(
            found._graph, found._images, found.groups, widths, selection, damping=1e-4, positions=None,
            refits=True,
        )  # fmt: skip
        totals[selection] = sum(path.error(len(path.order)) for path in paths)
    assert totals["reap"] < 1.05 * min(totals.values()), totals  # greedy, so not always the least
    assert totals["reap"] < min(totals["dpp"], totals["output_norm"], totals["magnitude"]), totals


def test_lasso_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(reapx.InputError, match=r"scikit-learn: pip install 'reapx\[lasso\]'"):
        reapx.plan(model, torch.randn(9, 4), budget=reapx.MACs(0.5), selection="lasso")


def test_positions_are_refused_where_nothing_is_measured() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    with pytest.raises(reapx.InputError, match=r"measures nothing.*'reap' or 'nu'"):
        reapx.plan(
            model, torch.randn(9, 4), budget=reapx.MACs(0.5), selection="output_norm", allocation="uniform", positions=3
        )
