"""Latency budgets met by measurement, with functions that measure without a clock; several budgets; bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from measures import by_weights, in_eights
from torch import Tensor, nn

import reapx
from reapx.allocation.timed_widths import CLOSE, ROUNDS, timed_limit
from reapx.costs.latency import Latency
from reapx.costs.layer_times import Configuration
from reapx.costs.runtimes import RUNTIMES, prepare
from reapx.costs.timing_table import TimingTable, time_layer

pytestmark = pytest.mark.filterwarnings("ignore::reapx.CalibrationWarning")

Measure = Callable[[nn.Module, object], float]


def block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [*block(3, 64), *block(64, 64), *block(64, 64, 2), *block(64, 64)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def widths(plan: reapx.Plan) -> list[int]:
    return [entry.kept for entry in plan.groups]


@pytest.mark.parametrize("measure", [by_weights, in_eights])
@pytest.mark.parametrize("allocation", ["pro", "uniform"])
@pytest.mark.parametrize("share", [0.8, 0.6])
def test_the_pruned_network_takes_what_was_asked(
    net: nn.Module, images: Tensor, measure: Measure, allocation: str, share: float
) -> None:
    """Of the user's own measure, whose time at width 8 k is the same as at 8 k - 7."""
    plan = reapx.plan(net, images, budget=Latency(share, measure=measure), allocation=allocation)  # type: ignore[arg-type]
    result = plan.apply()
    found = measure(result.model, None) / measure(net, None)
    coarse = allocation == "uniform" and measure is in_eights  # four groups, each in steps of an eighth
    assert (0.94 if coarse else CLOSE) * share <= found <= share
    assert plan.latency is not None and plan.latency[1] / plan.latency[0] == pytest.approx(found, rel=1e-9)
    assert result.latency == pytest.approx((plan.latency[0], plan.latency[1], plan.latency[1]))
    if measure is in_eights:
        assert all(width % 8 == 0 for width in widths(plan)) and widths(plan) != [64] * 4


def test_no_more_networks_are_timed_than_planned(net: nn.Module, images: Tensor) -> None:
    calls: list[str] = []

    def counting(module: nn.Module, inputs: object) -> float:
        calls.append(type(module).__name__)
        return in_eights(module, inputs)

    reapx.plan(net, images, budget=Latency(0.5, measure=counting), points=1)
    assert calls.count("Sequential") <= 3 + 2 * 3 * ROUNDS  # three times each, in turn with the original


def test_a_plan_at_another_latency_is_timed_again(net: nn.Module, images: Tensor) -> None:
    plan = reapx.plan(net, images, budget=Latency(0.8, measure=in_eights), points=1)
    smaller = plan.at(Latency(0.6, measure=in_eights))
    assert smaller.latency is not None and CLOSE * 0.6 <= smaller.latency[1] / smaller.latency[0] <= 0.6
    with pytest.raises(reapx.InputError, match="was not measured"):
        plan.at(Latency(0.6, measure=by_weights))


def test_a_latency_that_cannot_be_reached_names_what_can(net: nn.Module, images: Tensor) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(
        reapx.BudgetError, match=r"Latency\(0.05\) allows .* were measured at 0.1\d\d ms by in_eights.*raise"
    ):
        reapx.plan(net, images, budget=Latency(0.05, measure=in_eights), points=1)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_given_widths_are_timed(net: nn.Module, images: Tensor) -> None:
    budget = Latency(0.6, measure=in_eights)
    plan = reapx.plan(net, images, budget=budget, allocation={"*": 0.5})
    assert plan.latency is not None and plan.latency[1] == pytest.approx(in_eights(plan.apply().model, None))
    with pytest.raises(reapx.BudgetError, match=r"the widths that were given cost .* ms"):
        reapx.plan(net, images, budget=budget, allocation={"*": 0.99})


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), None, True, "3 ms"])
def test_what_is_no_time_is_refused(net: nn.Module, images: Tensor, value: object) -> None:
    def broken(module: nn.Module, inputs: object) -> object:
        return value

    with pytest.raises(reapx.BudgetError, match=r"measure=broken returned .*return milliseconds, a number above 0"):
        reapx.plan(net, images, budget=Latency(0.6, measure=broken), points=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime": "tensorrt"}, "choose one of eager, compile"),
        ({"threads": 0}, "give a whole number from 1"),
        ({"measure": 3}, "give a function"),
        ({"table": 3}, "give the path"),
        ({"measure": by_weights, "threads": 2}, "leave them out"),
        ({"measure": by_weights, "table": "x.json"}, "leave them out"),
        ({"runtime": "compile", "table": "x.json"}, "leave them out"),
    ],
)
def test_arguments_of_a_latency_are_checked(options: dict[str, object], words: str) -> None:
    with pytest.raises(reapx.BudgetError, match=words):
        Latency(0.6, **options)  # type: ignore[arg-type]


# The search for the limit.


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_the_search_ends_close_to_the_budget(power: float, share: float) -> None:
    """Where measured times are a fixed part and a power of the predicted ones."""

    def measure(widths: object) -> float:
        return 20 + 80 * (widths["a"] / 1000) ** power  # type: ignore[index]

    found = timed_limit(Latency(share), 100 * share, (1.0, 100.0), lambda limit: {"a": int(10 * limit)}, measure)
    assert 100 * CLOSE * share <= found.milliseconds <= 100 * share


def test_coarse_widths_stay_below_the_budget() -> None:
    """Only 25, 50, 75 and 100 ms exist: 60 ms give 50, although they are not close."""
    asked: list[int] = []

    def propose(limit: float) -> dict[str, int]:
        return {"a": int(limit // 25)}

    def measure(widths: object) -> float:
        asked.append(widths["a"])  # type: ignore[index]
        return 25.0 * asked[-1]

    found = timed_limit(Latency(0.6), 60.0, (25.0, 100.0), propose, measure)
    assert found.milliseconds == 50.0 and propose(found.limit) == {"a": 2}
    assert len(asked) == len(set(asked))  # no widths are timed twice


# Tables.


def test_steps_of_a_device_are_found_by_timing(net: nn.Module, images: Tensor) -> None:
    found = reapx.inspect(net, images)
    configuration = Configuration.of(found._graph, found.layers[1], 1)
    assert time_layer(configuration, by_weights).steps == (1, 1)
    table = time_layer(configuration, in_eights)
    assert table.steps == (8, 8)
    times = table.times()
    assert times([33, 64, 3, 3]) == times([40, 64, 3, 3]) > times([32, 64, 3, 3])
    assert times([64, 64, 3, 3]) == pytest.approx(1e-5 * 64 * 64 * 9 + 0.001)


def test_a_table_replaces_the_device(net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    found = reapx.inspect(net, images)
    reapx.time_layers(found, net, Latency(1, measure=in_eights), path)
    before = path.read_bytes()

    def never(module: nn.Module, inputs: object) -> float:
        raise AssertionError("the table has it")

    reapx.time_layers(found, net, Latency(1, measure=never), path)  # all of it is there
    assert path.read_bytes() == before
    plan = reapx.plan(net, images, budget=Latency(0.6, table=str(path)), points=1)
    assert plan.latency is not None and plan.latency[0] == pytest.approx(in_eights(net, None))
    assert plan.latency[1] <= 0.6 * plan.latency[0] and f"predicted from {path}" in str(plan)
    assert all(width % 8 == 0 for width in widths(plan))
    assert plan.apply().latency is None
    again = reapx.plan(net, images, budget=Latency(0.6, table=str(path)), points=1)
    assert widths(again) == widths(plan)


def test_a_table_that_does_not_fit_is_refused(net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    with pytest.raises(reapx.BudgetError, match=r"cannot be read.*give a file that reapx.time_layers wrote"):
        reapx.plan(net, images, budget=Latency(0.6, table=str(path)))
    TimingTable("a board").write(path)
    with pytest.raises(reapx.BudgetError, match=r"lacks 5 of 5 layers.*aten.conv2d.*call reapx.time_layers"):
        reapx.plan(net, images, budget=Latency(0.6, table=str(path)))
    page = json.loads(path.read_text())
    path.write_text(json.dumps({**page, "format": 99}))
    with pytest.raises(reapx.BudgetError, match="format 99"):
        TimingTable.read(path)
    with pytest.raises(reapx.InputError, match="give one that measures"):
        reapx.time_layers(reapx.inspect(net, images), net, Latency(0.6, table=str(path)), path)


# Several budgets, and bytes.


@pytest.mark.parametrize("allocation", ["pro", "uniform"])
@pytest.mark.parametrize("amounts", [(0.8, 0.4), (0.4, 0.8), (0.6, 0.6)])
def test_several_budgets_are_all_met(
    net: nn.Module, images: Tensor, allocation: str, amounts: tuple[float, float]
) -> None:
    macs, params = amounts
    budgets = [reapx.MACs(macs), reapx.Params(params)]
    plan = reapx.plan(net, images, budget=budgets, allocation=allocation)  # type: ignore[arg-type]
    shares = [plan.macs[1] / plan.macs[0], plan.params[1] / plan.params[0]]
    assert shares[0] <= macs and shares[1] <= params
    assert shares[0] > macs - 0.03 or shares[1] > params - 0.03  # one of them is used up
    assert "MACs(" in plan.method and "Params(" in plan.method
    if allocation == "pro":
        alone = plan.at(reapx.MACs(macs))
        assert alone.macs[1] >= plan.macs[1] and alone.settings.budgets == (reapx.MACs(macs),)


def test_a_latency_beside_parameters(net: nn.Module, images: Tensor) -> None:
    for share, params in ((0.6, 0.8), (0.8, 0.4)):
        plan = reapx.plan(net, images, budget=[reapx.Params(params), Latency(share, measure=by_weights)], points=1)
        assert plan.latency is not None and plan.latency[1] <= share * plan.latency[0]
        assert plan.params[1] <= params * plan.params[0]
        assert "ms planned" in str(plan)


def test_bytes_follow_the_dtype(net: nn.Module, images: Tensor) -> None:
    plan = reapx.plan(net, images, budget=reapx.Size(0.5), points=1)
    found = plan.inspection.costs
    assert found.of(reapx.Size) == sum(own.numel() * own.element_size() for own in net.parameters())
    assert sum(own.numel() * 4 for own in plan.apply().model.parameters()) <= 0.5 * found.of(reapx.Size)
    with pytest.raises(reapx.BudgetError, match=r"Size\(2\) allows 2 bytes, but the smallest"):
        reapx.plan(net, images, budget=reapx.Size(2), points=1)


def test_wrong_lists_of_budgets_are_refused(net: nn.Module, images: Tensor) -> None:
    with pytest.raises(reapx.InputError, match=r"budget=\[\].*a list of budgets"):
        reapx.plan(net, images, budget=[])
    with pytest.raises(reapx.InputError, match="MACs is given more than once"):
        reapx.plan(net, images, budget=[reapx.MACs(0.5), reapx.MACs(0.6)])
    with pytest.raises(reapx.InputError, match="budget="):
        reapx.plan(net, images, budget=[reapx.MACs(0.5), 0.6])  # type: ignore[list-item]
    with pytest.raises(reapx.BudgetError, match=r"Params\(2\) allows"):
        reapx.plan(net, images, budget=[reapx.MACs(0.5), reapx.Params(2)])


def test_plans_keep_their_budgets(net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    plan = reapx.plan(net, images, budget=[Latency(0.6, measure=in_eights), reapx.Size(0.9)], points=1)
    plan.save(tmp_path)
    loaded = reapx.load_plan(net, images, tmp_path)
    assert loaded.latency == plan.latency and loaded.settings.budgets[1] == reapx.Size(0.9)
    assert widths(loaded) == widths(plan) and str(loaded).splitlines()[:3] == str(plan).splitlines()[:3]
    assert loaded.apply().latency is None  # the function itself is not in the file


# Runtimes.


@pytest.mark.parametrize("runtime", ["eager", "torchscript"])
def test_runtimes_of_torch_run_and_leave_everything_as_it_was(net: nn.Module, images: Tensor, runtime: str) -> None:
    threads = torch.get_num_threads()
    run = prepare(runtime, net, (images[:2],), 1)
    assert run() > 0 and run() > 0 and torch.get_num_threads() == threads


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_package_that_is_missing_is_named(
    net: nn.Module, images: Tensor, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, runtime, None)  # as where it was never installed
    with pytest.raises(reapx.BudgetError, match=rf"runtime='{runtime}' needs the package .*: pip install {runtime}"):
        prepare(runtime, net, (images[:2],), None)
    assert runtime in RUNTIMES
