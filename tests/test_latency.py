"""The latency budget: tables of layer times, and what a network's layers take together; nothing depends on a clock."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from graphs import coupled, lively, plain
from torch import Tensor, nn

import reapx
from reapx.capture.layers import Layer
from reapx.costs.latency import Latency, latency_terms, measure_milliseconds
from reapx.costs.layer_times import Configuration, LayerTimes, measure_layer
from reapx.groups.channel_groups import find_groups
from reapx.inspection.inspection import Inspection

FIRST, SECOND = [2, 4, 8], [1, 3]
TABLE = np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 9.0]])


def found_in(name: str) -> tuple[nn.Module, Inspection, list[Layer]]:
    torch.manual_seed(0)
    case = {**plain.CASES, **coupled.CASES}[name]
    model = lively(case.build())
    found = reapx.inspect(model, torch.randn(6, *case.shape))
    return model, found, find_groups(found._graph).layers


def by_weights(configuration: Configuration) -> LayerTimes:
    """As if a layer took its number of weights, in milliseconds, and nothing were noisy."""
    first, second = configuration.grid()
    return LayerTimes(first, second, np.outer(first, second) * float(math.prod(configuration.weight[2:])))


def hand_made(monkeypatch: pytest.MonkeyPatch, total: float) -> list[Configuration]:
    """Layers that take their number of weights in a network that takes ``total``; what is measured is noted."""
    measured: list[Configuration] = []

    def note(configuration: Configuration) -> LayerTimes:
        measured.append(configuration)
        return by_weights(configuration)

    monkeypatch.setattr("reapx.costs.latency.measure_layer", note)
    monkeypatch.setattr("reapx.costs.latency.measure_milliseconds", lambda models, images, latency: [total])
    return measured


def test_times_are_exact_where_measured_and_linear_between() -> None:
    times = LayerTimes(FIRST, SECOND, TABLE)
    for i, first in enumerate(FIRST):
        for j, second in enumerate(SECOND):
            assert times([first, second, 3, 3]) == TABLE[i, j]
    assert times([3, 1]) == 2.0 and times([2, 2]) == 1.5 and times([6, 3]) == 7.0
    assert times([3, 2]) == pytest.approx((1 + 2 + 3 + 5) / 4)
    assert times([1, 1]) == 0.5  # half way to nothing


def test_width_zero_takes_nothing() -> None:
    times = LayerTimes(FIRST, SECOND, TABLE)
    assert times([0, 3]) == times([4, 0]) == times([0, 0]) == 0


def test_arrays_give_what_numbers_give() -> None:
    times = LayerTimes(FIRST, SECOND, TABLE)
    along, across = np.arange(9.0), np.arange(4.0)
    assert times([along, 2, 3, 3]).tolist() == [times([k, 2]) for k in range(9)]
    assert times([5, across]).tolist() == [times([5, k]) for k in range(4)]
    both = times([along[:4], across])
    assert both.tolist() == [times([k, k]) for k in range(4)]
    assert isinstance(times([4, 3]), float)


def test_noise_never_makes_a_wider_layer_cheaper() -> None:
    generator = np.random.default_rng(0)
    noisy = np.outer([1.0, 2.0, 4.0, 5.0], [1.0, 2.0, 3.0]) * generator.uniform(0.5, 1.5, (4, 3))
    times = LayerTimes([1, 4, 8, 16], [2, 4, 12], noisy)
    surface = times([np.arange(17.0)[:, None], np.arange(13.0)[None, :]])
    assert (np.diff(surface, axis=0) >= -1e-12).all() and (np.diff(surface, axis=1) >= -1e-12).all()
    fallen = LayerTimes([1, 2, 4], [1], [[1.0], [3.0], [2.0]])
    assert [fallen([size, 1]) for size in (1, 2, 4)] == [1.0, 2.5, 2.5]


@pytest.mark.parametrize("amount", [0, -1, math.nan, math.inf, True, "half"])
def test_latency_refuses_amounts(amount: object) -> None:
    with pytest.raises(reapx.BudgetError, match="give a fraction between 0 and 1"):
        Latency(amount)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [0, -3, 1.5, True, "64", None])
def test_latency_refuses_batches(batch: object) -> None:
    with pytest.raises(reapx.BudgetError, match=r"Latency\(0.5, batch=.*: give the number of images"):
        Latency(0.5, batch)  # type: ignore[arg-type]


def test_limit_keeps_its_decimals() -> None:
    assert Latency(0.5).limit(3.5) == 1.75 and isinstance(Latency(1).limit(3), float)
    assert Latency(2.25, batch=8).limit(10.0) == 2.25
    assert Latency(0.5) == Latency(0.5, 1) != Latency(0.5, 2)


@pytest.mark.parametrize("total", [1e6, 10.0])
@pytest.mark.parametrize("name", ["residual", "depthwise_multiplier", "grouped", "transposed", "tokens", "conv1d"])
def test_terms_add_up_to_the_network_and_fall_with_the_widths(
    name: str, total: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the layers alone take less than the network or, by noise, more."""
    hand_made(monkeypatch, total)
    model, found, layers = found_in(name)
    found.costs.use(
        Latency(0.5, batch=4), latency_terms(model, found._graph, layers, found._images, Latency(0.5, batch=4))
    )
    full = found.costs.full
    assert found.costs.of(Latency) == pytest.approx(total, rel=1e-12)
    for group, size in full.items():
        along = found.costs.along(Latency, group, full)
        assert (np.diff(along) > 0).all()
        single = [found.costs.of(Latency, {**full, group: width}) for width in range(size + 1)]
        assert np.diff(single) == pytest.approx(np.diff(along), rel=1e-6)


def test_what_is_no_layer_follows_the_output_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    hand_made(monkeypatch, 10_000.0)
    model, found, layers = found_in("conv")
    terms = dict(latency_terms(model, found._graph, layers, found._images, Latency(0.5, batch=1)))
    alone = 8 * 3 * 9 + 5 * 8 * 9
    elements = [8 * 7 * 7, 5 * 4 * 4]
    for name, shape, count in zip(["0.weight", "2.weight"], [(8, 3, 3, 3), (5, 8, 3, 3)], elements, strict=True):
        rest = (10_000 - alone) * count / sum(elements)
        assert terms[name](shape) == pytest.approx(math.prod(shape) + rest)
    assert terms["0.weight"]((4, 3, 3, 3)) == pytest.approx(4 * 27 + (10_000 - alone) * elements[0] / sum(elements) / 2)


def test_equal_layers_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = hand_made(monkeypatch, 1e5)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *[nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)], nn.Conv2d(8, 8, 1))
    found = reapx.inspect(model.eval(), torch.randn(4, 3, 6, 6))
    layers = find_groups(found._graph).layers
    terms = latency_terms(model, found._graph, layers, found._images, Latency(0.5, batch=2))
    assert len(terms) == 6 and [configuration.weight for configuration in measured] == [
        (8, 3, 1, 1),
        (8, 8, 3, 3),
        (8, 8, 1, 1),
    ]
    assert all(configuration.images == 2 and configuration.spatial == (6, 6) for configuration in measured)


def test_layers_that_differ_are_told_apart() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ConvTranspose2d(8, 8, 3, padding=1),
    )
    found = reapx.inspect(model.eval(), torch.randn(4, 8, 6, 6))
    layers = find_groups(found._graph).layers
    assert len({Configuration.of(found._graph, layer, 2) for layer in layers}) == 6


def called(configuration: Configuration, first: int, second: int) -> Tensor:
    inputs = configuration.inputs_at(first, second)
    data = torch.randn(configuration.images, inputs, *configuration.spatial)
    result = configuration.call(data, first, second)()
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize(
    "name",
    ["conv1d", "dilated_even_kernel", "depthwise", "depthwise_multiplier", "grouped", "transposed",
     "grouped_transposed", "tokens", "linear"],
)  # fmt: skip
def test_what_is_timed_is_the_layer_itself(name: str) -> None:
    """At full widths the same output size as in the network, and at every other width of the grid one that fits."""
    _, found, layers = found_in(name)
    for layer in layers:
        configuration = Configuration.of(found._graph, layer, 3)
        size = math.prod(found._graph.shape(layer.node)) // found._graph.batch
        full = called(configuration, *configuration.weight[:2])
        assert full.numel() == 3 * size
        for first in configuration.grid()[0]:
            for second in configuration.grid()[1]:
                outputs = full.numel() * (first if layer.depthwise or layer.out_axis == 0 else second)
                result = called(configuration, first, second)
                assert result.numel() * configuration.weight[0 if layer.depthwise else layer.out_axis] == outputs


def test_only_the_channels_of_a_depthwise_layer_vary() -> None:
    _, found, layers = found_in("depthwise_multiplier")
    depthwise = next(layer for layer in layers if layer.depthwise)
    configuration = Configuration.of(found._graph, depthwise, 1)
    first, second = configuration.grid()
    assert second == [1] and first[-1] == configuration.weight[0]
    assert all(size % (configuration.weight[0] // depthwise.window.groups) == 0 for size in first)
    _, found, layers = found_in("grouped")
    grouped = next(layer for layer in layers if layer.window.groups > 1)
    configuration = Configuration.of(found._graph, grouped, 1)
    assert all(size % grouped.window.groups == 0 for size in configuration.grid()[0])


def test_a_measured_network_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With real times: whatever they are, the sum is the network's and no width costs more than a larger one."""
    totals: list[float] = []

    def note(*arguments: object) -> list[float]:
        totals[:] = measure_milliseconds(*arguments)  # type: ignore[arg-type]
        return totals

    monkeypatch.setattr("reapx.costs.latency.measure_milliseconds", note)
    model, found, layers = found_in("residual")
    state = torch.get_rng_state()
    found.costs.use(
        Latency(0.5, batch=2), latency_terms(model, found._graph, layers, found._images, Latency(0.5, batch=2))
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert found.costs.of(Latency) == pytest.approx(totals[0]) and totals[0] > 0
    halves = {name: size // 2 for name, size in found.costs.full.items()}
    assert 0 < found.costs.of(Latency, halves) <= found.costs.of(Latency) * (1 + 1e-9)


def test_a_slow_point_is_run_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found, layers = found_in("conv")
    configuration = replace(Configuration.of(found._graph, layers[0], 1), weight=(2, 1, 3, 3))
    clocked: list[float] = []

    def clock(run: object, device: torch.device) -> float:
        clocked.append(len(clocked) + 1.0)
        return clocked[-1]

    monkeypatch.setattr("reapx.costs.layer_times.milliseconds", clock)
    monkeypatch.setattr("reapx.costs.layer_times.POINT_SECONDS", 1e-6)
    times = measure_layer(configuration)
    assert clocked == [1.0, 2.0]  # widths 1 and 2 of the outputs, once each
    assert times([1, 1]) == 1.0 and times([2, 1]) == 2.0


class Counting(nn.Module):
    """Notes the size of its batches, moves a buffer, and writes to its input."""

    seen: list[tuple[int, float]]

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        Counting.seen.append((len(x), float(x.sum())))
        self.calls += 1
        return self.one(x.mul_(2))


@pytest.mark.parametrize(("given", "batch"), [(4, 7), (4, 3), (4, 4)])
def test_the_network_runs_on_copies_of_one_batch(given: int, batch: int) -> None:
    """Too few images are repeated, too many cut; neither the images nor the module change."""
    Counting.seen = []
    model, values = Counting().eval(), torch.randn(given, 6)
    images = reapx.calibration.images.Images([values], torch.device("cpu"), 2**20)
    before = values.clone()
    assert measure_milliseconds([model, model], images, Latency(0.5, batch=batch)) > [0.0, 0.0]
    expected = float(values[torch.arange(batch) % given].sum())
    assert {size for size, _ in Counting.seen} == {batch}
    assert all(total == pytest.approx(expected, rel=1e-5, abs=1e-6) for _, total in Counting.seen)
    assert torch.equal(values, before) and float(model.calls) == 0
