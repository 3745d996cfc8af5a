"""The way down: costs along one group, steepest steps, points, budgets."""

from __future__ import annotations

from functools import cache
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from graphs import coupled, lively, plain
from torch import nn

import reapx
from reapx.allocation.allowed_widths import WidthRules
from reapx.allocation.curves import ErrorCurve
from reapx.allocation.pro import Tradeoff
from reapx.costs.budget import Costs
from reapx.inspection.inspection import Inspection

KINDS = [reapx.MACs, reapx.Params]


def found_in(name: str) -> Inspection:
    torch.manual_seed(0)
    case = {**plain.CASES, **coupled.CASES}[name]
    return reapx.inspect(lively(case.build()), torch.randn(4, *case.shape))


@pytest.mark.parametrize(
    "name",
    ["residual", "concat", "dense", "gate", "split", "shuffle", "pixel_shuffle", "depthwise_multiplier", "grouped",
     "transposed", "channels_last_flatten"],
)  # fmt: skip
def test_costs_along_one_group_differ_as_those_of_the_network(name: str) -> None:
    """At full widths and at others; only partners change what a group's width costs."""
    costs = found_in(name).costs
    random = np.random.default_rng(0)
    others = {group: int(random.integers(0, size + 1)) for group, size in costs.full.items()}
    partners = costs.partners()
    for widths, kind in product((costs.full, others), KINDS):
        for group, size in costs.full.items():
            along = costs.along(kind, group, widths)
            whole = np.array([float(costs.of(kind, {**widths, group: width})) for width in range(size + 1)])
            assert along.shape == (size + 1,)
            assert (np.diff(along) == np.diff(whole)).all()
            for other in set(costs.full) - partners[group]:
                changed = costs.along(kind, group, {**widths, other: max(widths[other] - 1, 0)})
                assert (np.diff(changed) == np.diff(along)).all()


@cache
def chain() -> tuple[Inspection, dict[str, ErrorCurve]]:
    """Three groups whose costs multiply, and convex errors that differ by orders of magnitude."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 7), nn.Linear(7, 4))
    found = reapx.inspect(model.eval(), torch.randn(4, 12))
    curves = {}
    for k, (group, scale) in enumerate(zip(found.groups, (1.0, 4.0, 0.3), strict=True)):
        removed = np.arange(group.size + 1) / group.size
        curves[group.name] = ErrorCurve(scale * removed ** (2.0 + 0.5 * k), ())
    return found, curves


def tradeoff_of(
    found: Inspection, curves: dict[str, ErrorCurve], width_rules: WidthRules, kind: type = reapx.MACs
) -> Tradeoff:
    tradeoff = Tradeoff(found.costs, kind, found.groups, width_rules)
    widths = {name: int(allowed[-1]) for name, allowed in width_rules.allowed(found.groups).items()}
    tradeoff.add(widths, 0.0, curves)
    return tradeoff


def cheapest_wider(
    costs: Costs, kind: type, width_rules: WidthRules, found: Inspection, widths: dict[str, int]
) -> float:
    wider = [
        float(costs.of(kind, {**widths, name: int(width)}))
        for name, allowed in width_rules.allowed(found.groups).items()
        for width in allowed
        if width > widths[name]
    ]
    return min(wider, default=float("inf"))


RULES = [
    WidthRules(),
    WidthRules(round_to=3),
    WidthRules(bounds={"0": (4, 7), "2": (5, 8)}),
    WidthRules(round_to=2, bounds={"4": (2, 6)}, droppable=frozenset({"0", "2"})),
]


@pytest.mark.parametrize("width_rules", RULES)
@pytest.mark.parametrize(
    "budget", [reapx.MACs(0.3), reapx.MACs(0.62), reapx.MACs(170), reapx.Params(0.6), reapx.Params(180), reapx.MACs(1)]
)
def test_a_budget_is_never_exceeded_and_nothing_wider_fits(
    budget: reapx.costs.budget.Budget, width_rules: WidthRules
) -> None:
    found, curves = chain()
    kind = type(budget)
    tradeoff = tradeoff_of(found, curves, width_rules)
    limit = budget.limit(found.costs.of(kind))
    allowed = width_rules.allowed(found.groups)
    least = found.costs.of(kind, {name: int(allowed[0]) for name, allowed in allowed.items()})
    if least > limit:
        with pytest.raises(reapx.BudgetError, match=f"smallest that can be reached is {least:,} "):
            tradeoff.at(budget)
        return
    point = tradeoff.at(budget)
    assert all(width in allowed[name] for name, width in point.widths.items())
    assert found.costs.of(kind, point.widths) == point.cost <= limit
    assert cheapest_wider(found.costs, kind, width_rules, found, point.widths) > limit
    assert point.share == pytest.approx(point.cost / found.costs.of(kind))
    assert point.error == pytest.approx(sum(curves[name].by_width[width] for name, width in point.widths.items()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.7, 0.85])
def test_the_way_down_is_the_best_of_all_within_one_step(share: float, kind: type[reapx.costs.budget.Budget]) -> None:
    """No combination at all does better with the budget less what the widest channel costs."""
    found, curves = chain()
    names = list(found.costs.full)
    point = tradeoff_of(found, curves, WidthRules(), kind).at(kind(share))
    limit = kind(share).limit(found.costs.of(kind))
    step = max(float(np.diff(found.costs.along(kind, name, found.costs.full)).max()) for name in names)
    best = min(
        sum(curves[name].by_width[width] for name, width in zip(names, widths, strict=True))
        for widths in product(*(range(1, size + 1) for size in found.costs.full.values()))
        if found.costs.of(kind, dict(zip(names, widths, strict=True))) <= limit - step
    )
    assert point.error <= best * (1 + 1e-12)


@pytest.mark.parametrize("width_rules", RULES)
def test_points_fall_in_cost_and_rise_in_error(width_rules: WidthRules) -> None:
    found, curves = chain()
    tradeoff = tradeoff_of(found, curves, width_rules)
    for kind in KINDS:
        points = tradeoff.points(kind)
        allowed = width_rules.allowed(found.groups)
        assert points[0].widths == {name: int(allowed[-1]) for name, allowed in allowed.items()}
        assert points[-1].widths == {name: int(allowed[0]) for name, allowed in allowed.items()}
        for wide, narrow in pairwise(points):
            assert narrow.cost < wide.cost and narrow.error >= wide.error
            changed = [name for name in wide.widths if narrow.widths[name] != wide.widths[name]]
            assert all(narrow.widths[name] < wide.widths[name] for name in changed)
            assert len(changed) == 1 or 0 in narrow.widths.values()  # what does nothing any more leaves as well
        for point in points:
            assert found.costs.of(kind, point.widths) == point.cost
            again = tradeoff.at(kind(point.cost))
            assert again.cost <= point.cost and again.error <= point.error * (1 + 1e-12)


def test_points_of_two_rounds_fall_in_cost() -> None:
    found, curves = chain()
    tradeoff = tradeoff_of(found, curves, WidthRules())
    limit = 0.6 * float(found.costs.of(reapx.MACs))
    half = tradeoff.below(reapx.MACs, limit)
    assert half is not None
    later = {
        name: ErrorCurve(np.maximum(curve.errors - curve.by_width[half.widths[name]], 0.0) * 2, ())
        for name, curve in curves.items()
    }
    tradeoff.add(half.widths, half.error, later)
    points = tradeoff.points(reapx.MACs)
    assert half.widths in [point.widths for point in points]
    assert all(narrow.cost < wide.cost for wide, narrow in pairwise(points))
    assert all(narrow.error >= wide.error for wide, narrow in pairwise(points))
    assert all(tradeoff.at(reapx.MACs(point.cost)).cost <= point.cost for point in points)
    # The second round was on the way of MACs; parameters follow the first.
    alone = tradeoff_of(found, curves, WidthRules())
    assert tradeoff.points(reapx.Params) == alone.points(reapx.Params)


def test_no_error_at_all_still_meets_the_budget() -> None:
    found, curves = chain()
    nothing = {name: ErrorCurve(curve.errors * 0, ()) for name, curve in curves.items()}
    point = tradeoff_of(found, nothing, WidthRules()).at(reapx.MACs(0.5))
    assert point.cost <= 0.5 * found.costs.of(reapx.MACs) and point.error == 0
    assert cheapest_wider(found.costs, reapx.MACs, WidthRules(), found, point.widths) > 0.5 * found.costs.of(reapx.MACs)


def test_bounds_that_leave_no_width_are_refused() -> None:
    found, _ = chain()
    with pytest.raises(reapx.InputError, match=r"bounds of 2: no multiple of round_to=4 lies within 5 to 7 channels"):
        WidthRules(round_to=4, bounds={"2": (5, 7)}).allowed(found.groups)
    residual = found_in("residual")
    name = next(group.name for group in residual.groups if group.residual_stream)
    with pytest.raises(reapx.InputError, match=r"bounds of stem\.0 \+ a2\.0, a residual stream: streams=False"):
        WidthRules(streams=False, bounds={name: (2, 4)}).allowed(residual.groups)
    assert WidthRules(streams=False, bounds={name: (2, 8)}).allowed(residual.groups)[name].tolist() == [8]
