"""The doors of the network level: steps by themselves, the caller's own scores, units, widths, operators and bars."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from graphs import coupled, lively
from torch import Tensor, nn

import reapx
from reapx.groups.rules.analysis_state import AnalysisState
from reapx.groups.rules.operator_rules import OPERATOR_RULES

HALF = reapx.MACs(0.5)


def residual() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    case = coupled.CASES["residual"]
    return lively(case.build()), torch.randn(60, *case.shape)


def plain() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4))
    return model.eval(), torch.randn(80, 3, 7, 7)


def removed_of(plan: reapx.Plan) -> dict[str, list[int]]:
    return {entry.group.name: entry.removed.tolist() for entry in plan.groups}


def test_every_public_name_is_there() -> None:
    assert all(hasattr(reapx, name) for name in reapx.__all__)


# Steps by themselves


def test_inspect_measure_and_find_path_take_the_steps_of_a_plan() -> None:
    """The units that leave and the errors are those of a plan at the same widths, from the images that it fits."""
    model, images = residual()
    fitted = images[(torch.arange(len(images)) + 1) % 4 > 0]
    found = reapx.inspect(model, fitted)
    assert [layer.name for layer in found.layers][:2] == ["stem.0", "a1.0"] and isinstance(found.groups, tuple)
    assert "\n" not in repr(found) and len(repr(found)) < 300
    moments = reapx.measure(found)
    assert set(moments) == {c.layer.weight for group in found.groups for c in group.consumers}
    plan = reapx.plan(model, images, budget=HALF, allocation="uniform", streams=True)
    for entry in plan.groups:
        path = reapx.find_path(found, entry.group.name, moments)
        count = len(entry.removed)
        assert len(path.order) == entry.group.size
        assert torch.equal(path.removed(count), entry.removed)
        assert path.error(count) == pytest.approx(entry.error, rel=1e-6)


def test_moments_are_sums_over_what_the_consumer_reads() -> None:
    model, images = plain()
    found = reapx.inspect(model, images)
    (group,) = [group for group in found.groups if group.name == "2"]
    (own,) = reapx.measure(found, ["2"])["5.weight"]
    with torch.no_grad():
        read = model[:5](images).double()
    torch.testing.assert_close(own.gram, read.T @ read, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own.total, read.sum(0), rtol=1e-5, atol=1e-4)
    assert own.rows == len(images) and group.consumers[0].layer.weight == "5.weight"


def test_find_path_follows_an_order_and_says_its_exact_error() -> None:
    """One group that a linear layer reads: the error is that of least squares without the units' columns."""
    model, images = plain()
    found = reapx.inspect(model, images)
    moments = reapx.measure(found, [found.groups[1]])
    path = reapx.find_path(found, found.groups[1], moments, [4, 0, 2], damping=1e-9)
    assert path.order.tolist() == [4, 0, 2] and path.removed(2).tolist() == [0, 4]
    with torch.no_grad():
        read, wanted = model[:5](images).double(), model(images).double()
    kept = [9 * unit + place for unit in (1, 3, 5) for place in range(9)]
    centred, target = read - read.mean(0), wanted - wanted.mean(0)
    left = target - centred[:, kept] @ torch.linalg.lstsq(centred[:, kept], target).solution
    assert path.error(3) == pytest.approx(float(left.square().sum() / target.square().sum()), rel=1e-4)


def test_steps_refuse_what_is_not_of_the_inspection() -> None:
    model, images = plain()
    found = reapx.inspect(model, images)
    moments = reapx.measure(found, ["0"])
    words = "is not a group of this inspection: give one of its groups, or a name: 0, 2"
    with pytest.raises(reapx.InputError, match=words):
        reapx.measure(found, ["1"])
    with pytest.raises(reapx.InputError, match="is not a group of this inspection"):
        reapx.find_path(reapx.inspect(model, images), found.groups[0], moments)
    with pytest.raises(reapx.InputError, match=r"5\.weight, which reads 2, is missing: call reapx\.measure"):
        reapx.find_path(found, "2", moments)
    with pytest.raises(reapx.InputError, match="order of 0: unit 1 occurs twice"):
        reapx.find_path(found, "0", moments, [1, 1])
    with pytest.raises(reapx.InputError, match="damping='a'"):
        reapx.find_path(found, "0", moments, damping="a")  # type: ignore[arg-type]


# The caller's own units


def test_with_removed_takes_the_callers_units_refits_and_proves() -> None:
    model, images = residual()
    plan = reapx.plan(model, images, budget=HALF)
    own = plan.with_removed({"a1.0": [5, 0], "b1.0": torch.tensor([1, 2, 3])})
    assert removed_of(own) == {**removed_of(plan), "a1.0": [0, 5], "b1.0": [1, 2, 3]}
    assert "units of a1.0, b1.0 chosen by the caller" in str(own) and own.chosen == {"a1.0", "b1.0"}
    result = own.apply()
    assert result.gap < 1e-8 and sum(p.numel() for p in result.model.parameters()) == own.params[1]
    assert result.model.a1[0].out_channels == 4
    with torch.no_grad():
        wanted = model(images)
        error = (result.model(images) - wanted).square().sum()
        without = (own.apply(reconstruct=False).model(images) - wanted).square().sum()
    assert error < without
    with pytest.raises(reapx.InputError, match=r"units of a1\.0, b1\.0 are the caller's choice"):
        own.at(reapx.MACs(0.6))


def test_a_plan_with_its_own_units_is_the_same_plan() -> None:
    model, images = residual()
    plan = reapx.plan(model, images, budget=HALF, allocation="uniform")
    again = plan.with_removed({entry.group.name: entry.removed for entry in plan.groups})
    assert (again.macs, again.params) == (plan.macs, plan.params)
    for mine, other in zip(
        again.apply().model.state_dict().values(), plan.apply().model.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ([0, 1], r"removed=\[0, 1\]: give a dict"),
        ({"a9": [0]}, "no group has this name; there are stem.0 \\+ a2.0, a1.0"),
        ({"a1.0": [0, 0]}, "removed of a1.0: unit 0 occurs twice"),
        ({"a1.0": [-1]}, "removed of a1.0: -1 is none of its units: give each number from 0 to 5"),
        ({"a1.0": [6]}, "6 is none of its units"),
        ({"a1.0": [0.5]}, "dtype torch.float32: give numbers of units, such as"),
        ({"a1.0": torch.ones(6, dtype=torch.bool)}, "dtype torch.bool"),
        ({"a1.0": "first"}, "removed of a1.0 is a str: give numbers of units"),
        ({"stem.0 + a2.0": range(8)}, "all 8 units would leave, but this group cannot go as a whole"),
    ],
)
def test_units_that_cannot_leave_are_refused(removed: Any, words: str) -> None:
    model, images = residual()
    plan = reapx.plan(model, images, budget=HALF, allocation="uniform", selection="magnitude")
    with pytest.raises(reapx.InputError, match=words):
        plan.with_removed(removed)


# The caller's own scores


def output_norms(group: reapx.Group, moments: Sequence[reapx.Moments], weights: Sequence[Tensor]) -> Tensor:
    """What ``"output_norm"`` does, as a rule of one's own."""
    assert len(moments) == len(weights) == len(group.consumers)
    norms = [
        weight[:, consumer.columns()].square().sum((0, 2)) / weight.square().sum()
        for consumer, weight in zip(group.consumers, weights, strict=True)
    ]
    return torch.stack(norms).mean(0)


@pytest.mark.parametrize("allocation", ["pro", "uniform"])
def test_own_scores_choose_what_the_method_of_the_same_scores_does(allocation: Any) -> None:
    model, images = plain()
    own = reapx.plan(model, images, budget=HALF, allocation=allocation, selection=output_norms)
    same = reapx.plan(model, images, budget=HALF, allocation=allocation, selection="output_norm")
    assert removed_of(own) == removed_of(same)
    assert "output_norms selection" in str(own) and len(repr(own)) < 300
    assert own.apply().gap < 1e-8
    assert all(entry.error >= 0 for entry in own.groups)  # measured, whatever the rule looked at


def test_an_order_of_whole_numbers_leaves_in_that_order() -> None:
    model, images = plain()

    def backwards(group: reapx.Group, *_: object) -> list[int]:
        return list(range(group.size))[::-1]

    plan = reapx.plan(model, images, budget=HALF, allocation="uniform", selection=backwards)
    for entry in plan.groups:
        assert entry.removed.tolist() == list(range(entry.kept, entry.group.size))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.rand(3), r"selection=rule for 0, which has 8 units, returned scores of shape \(3,\)"),
        (torch.full((8,), torch.nan), "return a finite number for each unit"),
        (torch.zeros(8, dtype=torch.int64), "different units, from 0 to 7; scores must be floating point"),
        ([0], "returned an order of shape"),
        (torch.ones(8, dtype=torch.bool), "torch.bool"),
        (None, "returned a NoneType: return scores or an order"),
    ],
)
def test_a_rule_that_returns_something_else_is_refused(given: Any, words: str) -> None:
    model, images = plain()

    def rule(*_: object) -> Any:
        return given

    with pytest.raises(reapx.InputError, match=words):
        reapx.plan(model, images, budget=HALF, allocation="uniform", selection=rule)


# The caller's own widths


def test_allocation_takes_the_callers_widths() -> None:
    model, images = residual()
    widths = {"a1.0": 3, "b*": 0.5, model.b1[0]: 9}
    plan = reapx.plan(model, images, allocation=widths)
    kept = {entry.group.name: entry.kept for entry in plan.groups}
    assert kept == {"stem.0 + a2.0": 8, "a1.0": 3, "b1.0": 9, "b2.0 + down.0": 6}
    assert "widths given by the caller" in str(plan)
    assert plan.apply().gap < 1e-8
    whole = reapx.plan(model, images, allocation=widths, streams=False)
    assert {entry.group.name: entry.kept for entry in whole.groups}["b2.0 + down.0"] == 12


@pytest.mark.parametrize(
    ("allocation", "options", "words"),
    [
        (
            {"a1.0": 7},
            {},
            r"allocation={'a1.0': 7} for a1.0, which has 6 channels: give a share",
        ),
        ({"a1.0": 1.5}, {}, "which has 6 channels"),
        ({"a1.0": "half"}, {}, "which has 6 channels"),
        ({"a1.0": 3}, {"round_to": 2}, r"one of the widths that it may have \(0, 2, 4, 6\)"),
        ({"a9": 3}, {}, "allocation={'a9': ...} meets no channels"),
        ({}, {}, "allocation={}: choose one of pro, uniform, or a dict of widths"),
        ({"a1.0": 3}, {"rounds": 2}, "rounds=2 with allocation='a dict of widths'"),
    ],
)
def test_widths_that_cannot_be_had_are_refused(allocation: Any, options: dict[str, Any], words: str) -> None:
    model, images = residual()
    with pytest.raises(reapx.InputError, match=words):
        reapx.plan(model, images, allocation=allocation, **options)


def test_given_widths_are_held_against_a_budget() -> None:
    model, images = residual()
    with pytest.raises(reapx.BudgetError, match=r"that were given cost [\d,]+, and budget=MACs\(0.5\) allows"):
        reapx.plan(model, images, budget=HALF, allocation={"a1.0": 3})
    with pytest.raises(reapx.InputError, match=r"budget=None: give reapx\.MACs"):
        reapx.plan(model, images)


# The caller's own operators


@torch.library.custom_op("reapxtest::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    return x * 0.5


@torch.library.custom_op("reapxtest::relu", mutates_args=())
def relu(x: Tensor) -> Tensor:
    """Named as ATen's, but it turns the channels around."""
    return x.flip(1).clamp(min=0)


@torch.library.custom_op("reapxtest::mirror", mutates_args=())
def mirror(x: Tensor) -> Tensor:
    return x.flip(1).contiguous()


OPERATORS = {"halve": halve, "relu": relu, "mirror": mirror}
for operator in OPERATORS.values():
    operator.register_fake(torch.empty_like)


class WithOperator(nn.Module):
    """Two convolutions with an operator of the user's own between them."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.first, self.last, self.operator = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), operator

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(OPERATORS[self.operator](self.first(x))))


def with_operator(operator: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return WithOperator(operator._name).eval(), torch.randn(40, 3, 7, 7)


@pytest.fixture(autouse=True)
def _forget_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reapx.groups.rules.operator_rules._REGISTERED", {})


def test_an_operator_without_a_rule_freezes_even_if_aten_has_one_of_its_name() -> None:
    for operator in (halve, relu):
        model, images = with_operator(operator)
        name = f"reapxtest::{operator._name}"
        with pytest.raises(reapx.InputError, match=f"operator {name} is not known to act per channel"):
            reapx.inspect(model, images)


@pytest.mark.parametrize(
    "op", [halve, torch.ops.reapxtest.halve, torch.ops.reapxtest.halve.default, "reapxtest::halve"]
)
def test_a_registered_operator_passes_channels_on(op: object) -> None:
    reapx.register_operator(op, "elementwise")
    model, images = with_operator(halve)
    result = reapx.prune(model, images, budget=HALF)
    assert result.gap < 1e-8 and result.model.first.out_channels < 8


def test_a_rule_may_move_channels() -> None:
    def turned_around(state: AnalysisState, node: torch.fx.Node) -> Any:
        layout = list(state.layout(node.all_input_nodes[0]))
        layout[1] = None if layout[1] is None else layout[1][::-1].copy()
        return layout

    reapx.register_operator(mirror, turned_around)
    model, images = with_operator(mirror)
    plan = reapx.plan(model, images, budget=HALF)
    assert plan.apply().gap < 1e-8
    reapx.register_operator(mirror, "elementwise")  # wrong: the trial finds out, and freezes
    with pytest.raises(reapx.InputError, match="forward\\(\\) does not work with fewer of these channels"):
        reapx.inspect(model, images)


def test_rules_and_operators_that_are_none_are_refused() -> None:
    with pytest.raises(reapx.InputError, match="op='relu': give what torch"):
        reapx.register_operator("relu", "elementwise")
    for op in ("aten::relu", torch.ops.aten.conv2d, torch.ops.aten.relu.default):
        with pytest.raises(reapx.InputError, match="reapx knows this operator"):
            reapx.register_operator(op, "elementwise")
    with pytest.raises(reapx.InputError, match="rule='pointwise': choose one of elementwise, per_channel, norm"):
        reapx.register_operator(halve, "pointwise")  # type: ignore[arg-type]
    reapx.register_operator(halve, lambda state, node: [None])
    with pytest.raises(reapx.InputError, match=r"the rule of reapxtest::halve returned \[None\] for a value of shape"):
        reapx.inspect(*with_operator(halve))
    assert not any("::" in name for name in OPERATOR_RULES)


# Bars and the log


def test_on_progress_is_called_from_nothing_to_all_of_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    model, images = plain()
    calls: list[tuple[str, int, int]] = []
    reapx.prune(model, list(images.split(20)), budget=HALF, on_progress=lambda *call: calls.append(call))
    steps = list(dict.fromkeys(step for step, _, _ in calls))
    assert steps == ["measuring", "measuring outputs", "refitting", "refitting on all images"]
    for step in steps:
        own = [(done, total) for name, done, total in calls if name == step]
        assert own == [(done, own[0][1]) for done in range(own[0][1] + 1)]
    assert capsys.readouterr().err == ""
    with pytest.raises(reapx.InputError, match="on_progress=3: give a function"):
        reapx.plan(model, images, budget=HALF, on_progress=3)  # type: ignore[arg-type]


def test_what_on_progress_raises_ends_the_call() -> None:
    model, images = plain()

    def stop(step: str, done: int, total: int) -> None:
        if step == "measuring" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reapx.prune(model, images, budget=HALF, on_progress=stop)


def test_the_log_has_steps_and_times(caplog: pytest.LogCaptureFixture) -> None:
    model, images = plain()
    with caplog.at_level(logging.INFO, logger="reapx"):
        reapx.prune(model, images, budget=HALF)
    lines = [record.getMessage() for record in caplog.records if record.name == "reapx"]
    for step in ("capturing", "finding channel groups", "measuring", "measuring outputs", "refitting", "proving"):
        assert any(line.startswith(step) and line.endswith(" s") for line in lines), step


def test_measured_consumers_are_what_selection_sees() -> None:
    """Contributions of the units add up to the variance of the consumer's outputs."""
    model, images = plain()
    found = reapx.inspect(model, images)
    moments = reapx.measure(found, ["2"])
    (own,) = reapx.measured_consumers(found, "2", moments)
    with torch.no_grad():
        outputs = model(images).double()
    variance = (outputs - outputs.mean(0)).square().sum()
    assert float(own.contributions.sum()) == pytest.approx(float(variance), rel=1e-5)
    assert own.scale == pytest.approx(1 / float(variance), rel=1e-5)
    whole, some = (reapx.find_path(found, "2", moments, steps=steps) for steps in (None, 2))
    assert whole.order[:2].tolist() == some.order.tolist()
    with pytest.raises(reapx.InputError, match="steps=7: give a whole number from 0 to 6"):
        reapx.find_path(found, "2", moments, steps=7)
