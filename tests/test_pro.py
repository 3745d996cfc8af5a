"""PRO as a whole: what is pruned first, budgets, bounds, refusals, repeatability."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from graphs import coupled, lively, plain
from judging import judged_network, moved
from torch import Tensor, nn

import reapx
import reapx.allocation.output_errors
import reapx.moments.measure
from reapx.costs.latency import Latency


def residual() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    case = coupled.CASES["residual"]
    return lively(case.build()), torch.randn(90, *case.shape)


def widths(plan: reapx.Plan) -> dict[str, int]:
    return {entry.group.name: entry.kept for entry in plan.groups}


def same(one: reapx.Plan, other: reapx.Plan) -> bool:
    """Everything but the time that it took."""
    return [
        (a.group.name, a.kept, a.removed.tolist(), a.error, a.output_error) for a in one.groups
    ] == [(b.group.name, b.kept, b.removed.tolist(), b.error, b.output_error) for b in other.groups] and (
        one.macs,
        one.params,
        one.budget,
        one.output_error,
    ) == (other.macs, other.params, other.budget, other.output_error)  # fmt: skip


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with every batch that is measured; the few images that analysis looks at do not count."""
    runs: list[str] = []
    for name, module in (("moments", reapx.moments.measure), ("outputs", reapx.allocation.output_errors)):

        def counted(
            graph: Any, inputs: Any, *rest: Any, _name: str = name, _run: Any = module.run, **options: Any
        ) -> Any:
            if len(inputs[0]) > 2:
                runs.append(_name)
            return _run(graph, inputs, *rest, **options)

        monkeypatch.setattr(module, "run", counted)
    return runs


class Useless(nn.Module):
    """Two parallel branches; what the second one says hardly counts behind their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 10, 3), nn.Conv2d(3, 10, 3)
        self.left, self.right, self.head = nn.Conv2d(10, 6, 1), nn.Conv2d(10, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(torch.relu(self.one(x))), self.right(torch.relu(self.two(x)))
        return self.head(torch.tanh(left + right).mean((2, 3)))


@pytest.mark.parametrize(("kind", "output_error"), [(reapx.MACs, "squared"), (reapx.Params, "kl")])
def test_what_hardly_counts_at_the_outputs_is_pruned_first(
    kind: type[reapx.costs.budget.Budget], output_error: str
) -> None:
    torch.manual_seed(0)
    model = Useless().eval()
    with torch.no_grad():
        model.left.weight.mul_(1e-3)  # of two parallel branches, only the first may leave as a whole
    images = torch.randn(60, 3, 7, 7)
    plan = reapx.plan(model, images, budget=kind(0.6), exclude=["left"], output_error=output_error)
    kept = widths(plan)
    assert kept["two"] == 10 and kept["one"] < 10
    assert kept != widths(reapx.plan(model, images, budget=kind(0.6), exclude=["left"], allocation="uniform"))
    curves = plan.curves()
    assert curves["one"].errors[-2] < 1e-3 * curves["two"].errors[-2]
    assert plan.output_error == pytest.approx(sum(entry.output_error for entry in plan.groups))
    gone = plan.at(kind(0.4))
    assert widths(gone)["one"] == 0 and widths(gone)["two"] < 10


def test_a_plan_at_another_budget_is_the_plan_of_that_budget() -> None:
    model, images = residual()
    plan = reapx.plan(model, images, budget=reapx.MACs(0.5))
    for budget in (reapx.MACs(0.5), reapx.Params(0.6), reapx.MACs(20_000)):
        fresh = reapx.plan(model, images, budget=budget)
        assert same(plan.at(budget), fresh)
        assert same(plan.at(reapx.MACs(0.9)).at(budget), fresh)
    result = plan.at(reapx.Params(0.6)).apply()
    assert result.gap < 1e-8
    assert sum(p.numel() for p in result.model.parameters()) <= 0.6 * plan.params[0]


def test_every_point_of_the_tradeoff_is_a_plan() -> None:
    model, images = residual()
    plan = reapx.plan(model, images, budget=reapx.MACs(0.5))
    points = plan.tradeoff()
    assert points[0].share == 1.0 and points[0].error == 0.0
    assert all(a.cost > b.cost and a.error <= b.error for a, b in pairwise(points))
    for point in points:
        assert plan.at(reapx.MACs(point.cost)).macs[1] <= point.cost
    assert points[-1].cost == plan.at(reapx.MACs(points[-1].cost)).macs[1]


@pytest.mark.parametrize(
    "options",
    [{"rounds": 3, "points": 2}, {"output_error": "kl"}, {"selection": "magnitude"}, {"round_to": 4},
     {"positions": 5, "memory": 60_000}, {"swaps": 3}, {"rounds": 2, "bounds": {"*": (0.2, 0.8)}}],
)  # fmt: skip
def test_settings_run_and_the_budget_holds(options: dict[str, Any]) -> None:
    model, images = residual()
    budget = reapx.Params(0.45) if "points" in options else reapx.MACs(0.5)
    if "bounds" in options:
        options = {**options, "exclude": ["head"]}
    plan = reapx.plan(model, images, budget=budget, **options)
    cost = plan.macs if isinstance(budget, reapx.MACs) else plan.params
    assert cost[1] <= budget.amount * cost[0]
    assert plan.output_error > 0 and all(entry.output_error >= 0 for entry in plan.groups)
    if options.get("round_to"):
        assert all(entry.kept % 4 == 0 or entry.kept == entry.group.size for entry in plan.groups)
    assert plan.apply().gap < 1e-8


def test_more_points_are_measured_where_asked_for() -> None:
    model, images = residual()
    few, many = (reapx.plan(model, images, budget=reapx.MACs(0.5), points=n).curves() for n in (1, 3))
    for name, curve in many.items():
        assert len(curve.measured) > len(few[name].measured)
        for count, error in curve.measured:
            assert curve.errors[count] >= error * (1 - 1e-9)


def test_a_second_round_starts_halfway() -> None:
    model, images = residual()
    plan = reapx.plan(model, images, budget=reapx.MACs(0.4), rounds=2)
    points = plan.tradeoff()
    assert all(a.cost > b.cost for a, b in pairwise(points))
    assert any(0.65 < point.share <= 0.7 for point in points)
    alone = reapx.plan(model, images, budget=reapx.MACs(0.4))
    assert plan.curves().keys() == alone.curves().keys()
    for name, curve in plan.curves().items():
        assert curve.measured == alone.curves()[name].measured


def test_a_group_at_its_smallest_width_is_not_counted_twice_in_a_second_round() -> None:
    """It has nothing to measure any more, and its error is in that of all."""
    torch.manual_seed(0)
    model, images = Useless().eval(), torch.randn(60, 3, 7, 7)
    with torch.no_grad():
        model.right.weight.mul_(0.05)
    one, two = (
        reapx.plan(model, images, budget=reapx.MACs(0.55), rounds=rounds, exclude=["left"], bounds={"two": (7, 10)})
        for rounds in (1, 2)
    )
    first, second = one._tradeoff, two._tradeoff
    assert first is not None and second is not None
    stage = second._stages[1]
    assert stage.widths["two"] == 7
    start = second._point(reapx.MACs, stage, second._descent(reapx.MACs, stage))
    assert start.error == pytest.approx(stage.error)


def test_bounds_hold_by_shares_numbers_and_patterns() -> None:
    model, images = residual()
    given: dict[str, tuple[float, float]] = {"a1.0": (5, 5), "b?.0": (0.5, 0.9), "b1*": (0.3, 0.75)}
    for allocation in ("pro", "uniform"):
        for budget in [reapx.MACs(0.5)] if allocation == "pro" else [reapx.MACs(0.5), reapx.MACs(1.0)]:
            plan = reapx.plan(model, images, budget=budget, bounds=given, allocation=allocation, streams=True)
            kept = widths(plan)
            assert kept["a1.0"] == 5
            assert 5 <= kept["b1.0"] <= 7 and 6 <= kept["b2.0 + down.0"] <= 10
            assert plan.macs[1] <= budget.amount * plan.macs[0]
            assert plan.apply().gap < 1e-8


@pytest.mark.parametrize(
    ("bounds", "options", "words"),
    [
        ({"a1.0": (1, 2), "a1": (4, 6)}, {}, r"bounds of a1\.0 contradict each other: at least 4, at most 2"),
        ({"nothing": (1, 2)}, {}, "'nothing' matches no layer; there are stem.0"),
        ({"a1.0": (0.5, 7)}, {}, r"for a1\.0, which has 6 channels: give"),
        ({"a1.0": (4, 2)}, {}, r"for a1\.0"),
        ({"a1.0": (0, 0)}, {}, r"for a1\.0"),
        ({"a1.0": 0.5}, {}, r"for a1\.0"),
        ({"a1.0": (-1, 3)}, {}, r"for a1\.0"),
        ({"a1.0": (0.1, float("nan"))}, {}, r"for a1\.0"),
        ({"a1.0": (True, 3)}, {}, r"for a1\.0"),
        ({"head": (1, 3)}, {}, "'head' bounds nothing, its channels all stay .head: it is an output of the model"),
        ({"a1.0": (1, 3)}, {"exclude": ["a1"]}, "'a1.0' bounds nothing.*excluded by the caller"),
        ({"a1.0": (1, 3)}, {"round_to": 4}, r"bounds of a1\.0: no multiple of round_to=4"),
        ({"stem.0": (1, 3)}, {"streams": False}, r"bounds of stem\.0 \+ a2\.0, a residual stream"),
    ],
)
def test_bounds_that_cannot_hold_are_refused_with_the_layer(
    bounds: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    model, images = residual()
    with pytest.raises(reapx.InputError, match=words):
        reapx.plan(model, images, budget=reapx.MACs(0.7), bounds=bounds, **options)


def test_bounds_count_channels_where_units_own_several() -> None:
    torch.manual_seed(0)
    model, images = plain.CASES["grouped"].build().eval(), torch.randn(40, 3, 6, 6)
    plan = reapx.plan(model, images, budget=reapx.MACs(0.8), bounds={"0": (3, 6)})
    assert plan.groups[0].group.per_unit == 2 and 4 <= plan.groups[0].channels[1] <= 6
    with pytest.raises(reapx.InputError, match="has 8 channels that leave by 2: give"):
        reapx.plan(model, images, budget=reapx.MACs(0.8), bounds={"0": (1, 1)})


def test_exclude_and_streams_keep_groups_whole() -> None:
    model, images = residual()
    plan = reapx.plan(model, images, budget=reapx.MACs(0.6), streams=False, exclude=["b1.*"])
    assert "b1.0" not in widths(plan)
    for entry in plan.groups:
        assert entry.kept == entry.group.size or not entry.group.residual_stream
    assert plan.macs[1] < plan.macs[0] and "Residual streams stay whole" in str(plan)
    assert any(
        entry.group.residual_stream and entry.kept < entry.group.size
        for entry in reapx.plan(model, images, budget=reapx.MACs(0.1)).groups
    )


@pytest.mark.parametrize(
    ("allocation", "budget"), [("pro", reapx.MACs(1e-4)), ("pro", reapx.Params(1e-4)), ("uniform", reapx.MACs(1e-4))]
)
def test_an_unreachable_budget_is_refused_before_anything_is_measured(
    allocation: str, budget: reapx.costs.budget.Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = residual()
    runs = count_runs(monkeypatch)
    options: dict[str, Any] = {"allocation": allocation, "streams": True, "bounds": {"a1": (0.5, 1.0)}}
    with pytest.raises(reapx.BudgetError, match="smallest that can be reached is") as refused:
        reapx.plan(model, images, budget=budget, **options)
    assert "loosen bounds (none allow" in str(refused.value)
    least = int(str(refused.value).split("reached is ")[1].split(" ")[0].replace(",", ""))
    with pytest.raises(reapx.BudgetError, match="smallest that can be reached"):
        reapx.plan(model, images, budget=type(budget)(least - 1), **options)
    assert not runs
    plan = reapx.plan(model, images, budget=type(budget)(least), **options)
    assert runs and (plan.macs if isinstance(budget, reapx.MACs) else plan.params)[1] == least


def test_a_plan_without_measured_errors_says_what_to_do_instead() -> None:
    model, images = residual()
    plain_plan = reapx.plan(model, images, budget=reapx.MACs(0.6), allocation="uniform")
    for call in (lambda: plain_plan.at(reapx.MACs(0.5)), plain_plan.tradeoff, plain_plan.curves):
        with pytest.raises(reapx.InputError, match=r"allocation='uniform' measures no errors .*: plan with 'pro'"):
            call()
    assert plain_plan.output_error != plain_plan.output_error
    swapped = reapx.plan(model, images, budget=reapx.MACs(0.6), swaps=2)
    with pytest.raises(reapx.InputError, match=r"swaps .*: call reapx\.plan again, with resume=folder"):
        swapped.at(reapx.MACs(0.5))
    plan = reapx.plan(model, images, budget=reapx.MACs(0.6))
    with pytest.raises(reapx.InputError, match=r"Latency.* was not measured: call reapx\.plan with it"):
        plan.at(Latency(0.5))
    with pytest.raises(reapx.BudgetError, match="smallest that can be reached"):
        plan.at(reapx.MACs(1e-6))


@pytest.mark.parametrize(
    "options",
    [{"points": 0}, {"points": 1.5}, {"rounds": 0}, {"rounds": True}, {"output_error": "l1"},
     {"allocation": "uniform", "points": 3}, {"allocation": "uniform", "output_error": "kl"}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    model, images = residual()
    with pytest.raises(reapx.InputError, match=r"points|rounds|output_error"):
        reapx.plan(model, images, budget=reapx.MACs(0.6), **options)


def test_two_calls_and_any_number_of_threads_give_equal_plans() -> None:
    model, images = residual()
    options: dict[str, Any] = {"budget": reapx.MACs(0.5), "rounds": 2, "points": 2}
    first = reapx.plan(model, images, **options)
    assert same(first, reapx.plan(model, images, **options))
    torch.set_num_threads(2)
    other = reapx.plan(model, images, **options)
    assert widths(other) == widths(first)
    assert [entry.removed.tolist() for entry in other.groups] == [entry.removed.tolist() for entry in first.groups]


def test_the_curve_says_what_the_outputs_lose() -> None:
    """A measured point is the error of a network in which that group alone was pruned and its reader refitted."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 5)).eval()
    images = torch.randn(200, 6)
    plan = reapx.plan(model, images, budget=reapx.MACs(0.5), damping=1e-8)
    for count, error in plan.curves()["0"].measured:
        smaller = reapx.plan(model, images, budget=reapx.MACs(0.5), damping=1e-8, bounds={"0": (1, 12 - count)})
        if smaller.groups[0].kept != 12 - count:
            smaller = plan.at(reapx.MACs(float(plan.macs[0] * (12 - count) / 12)))
        change = moved(model, judged_network(smaller, damping=1e-8), images[3::4])  # no fit has seen them
        assert change == pytest.approx(error, rel=1e-2)
