"""A budget in milliseconds, measured where the network will run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..calibration.images import Images
from ..calibration.threads import TURNS
from ..capture.graph import Graph
from ..capture.layers import Layer
from ..errors import BudgetError
from .budget import AxisSizes, Budget, Cost
from .layer_times import POINT_SECONDS, REPEATS, Configuration, measure_layer, median, settle_allocator
from .runtimes import EXPORTING, RUNTIMES, Inputs, MeasureFunction, Run, prepare, threads_of
from .timing_table import TimingTable, network_key, time_layer

Times = Callable[[AxisSizes], Any]

NETWORK_REPEATS, NETWORK_SECONDS = 31, 3.0
"""Number of timed runs of the whole network, and the seconds after which timing ends earlier; the median counts."""
FUNCTION_REPEATS = 3
"""Number of calls of the user's function for a whole network; each call may mean an export and a board."""


@dataclass(frozen=True)
class Latency(Budget):
    """Milliseconds of one forward pass over a batch, met by measurement.

    Widths are proposed from tables of layer times. A network of these widths is then timed in turn with the original,
    and the proposal is corrected until the measured time is at most the budget and, where the allowed widths are fine
    enough, within 3 % of it. The model is timed in eval mode and in its own dtype. Another machine, device, runtime,
    number of threads or batch size gives other milliseconds and other plans. On a GPU, a small batch takes as long as
    launching its operators, whatever their widths.

    Attributes:
        amount: Up to 1 a fraction of the original network's milliseconds, above 1 a number of milliseconds.
        batch: Number of images in a batch.
        runtime: ``"eager"``, ``"compile"``, ``"torchscript"``, ``"onnxruntime"`` or ``"openvino"``. The last two run on
            the CPU, need the package of this name and ``onnx``, and are installed by the user.
        threads: Number of threads on the CPU; None for ``torch.get_num_threads()``.
        measure: Function ``(module, inputs) -> milliseconds`` that takes the place of a runtime, for instance one that
            exports the module, copies it to a board and runs it there. ``inputs`` are a tuple of tensors, or a dict of
            keyword tensors. It is called with whole networks and with single layers.
        table: JSON file of ``reapx.time_layers``. It is used without any measurement, so the milliseconds of the plan
            are a prediction.

    Raises:
        BudgetError: ``amount`` is not a positive finite number, another argument is not allowed, or two of them exclude
            each other.
    """

    batch: int = 1
    runtime: str = "eager"
    threads: int | None = None
    measure: MeasureFunction | None = None
    table: str | None = None

    unit = "ms"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _is_count(self.batch):
            raise self._error(f"batch={self.batch!r}", "give the number of images in a batch, a whole number from 1")
        if self.runtime not in RUNTIMES:
            raise self._error(f"runtime={self.runtime!r}", f"choose one of {', '.join(RUNTIMES)}, or give measure=")
        if self.threads is not None and not _is_count(self.threads):
            raise self._error(f"threads={self.threads!r}", "give a whole number from 1, or None for torch's number")
        if self.measure is not None and not callable(self.measure):
            raise self._error(f"measure={self.measure!r}", "give a function (module, inputs) -> milliseconds")
        if self.table is not None and not isinstance(self.table, str | Path):
            raise self._error(f"table={self.table!r}", "give the path of a file that reapx.time_layers wrote")
        if self.measure is not None and (self.runtime != "eager" or self.threads is not None):
            raise self._error("measure=", "the function decides on runtime and threads: leave them out")
        if self.table is not None:
            if self.measure is not None or self.runtime != "eager" or self.threads is not None:
                raise self._error(
                    f"table={str(self.table)!r}", "a table needs no measure, runtime or threads: leave them out"
                )
            object.__setattr__(self, "table", str(self.table))

    def _error(self, given: str, cure: str) -> BudgetError:
        return BudgetError(f"{type(self).__name__}({self.amount!r}, {given}): {cure}")

    def limit(self, full: float) -> float:
        """The budget in milliseconds, given the milliseconds of the full network."""
        return float(self.amount * full if self.amount <= 1 else self.amount)

    @property
    def where(self) -> str:
        """Where the milliseconds are taken, in words."""
        if self.table is not None:
            return f"predicted from {self.table}"
        if self.measure is not None:
            return f"by {getattr(self.measure, '__name__', 'measure')}"
        return "on this machine" if self.runtime == "eager" else f"on this machine in {self.runtime}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def prepared(latency: Latency, module: nn.Module, inputs: Inputs) -> Run:
    """A function that runs a module once as a budget says, and returns milliseconds.

    Raises:
        BudgetError: the runtime's package is missing, or the user's function returns no positive number.
    """
    if latency.measure is None:
        return prepare(latency.runtime, module, inputs, latency.threads)
    function = latency.measure

    def run() -> float:
        with torch.no_grad():
            value = function(module, inputs)
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) < math.inf:
            raise BudgetError(
                f"measure={getattr(function, '__name__', function)!s} returned {value!r} for {type(module).__name__}: "
                "return milliseconds, a number above 0"
            )
        return float(value)

    return run


def measure_milliseconds(models: Sequence[nn.Module], images: Images, latency: Latency) -> list[float]:
    """Time whole networks as a budget says, without gradients.

    Args:
        models: Modules in eval mode. Copies are run in turn, so that a drift of the machine's speed affects all alike.
        images: The calibration set; its first images are repeated or cut to one batch.
        latency: Its batch, runtime, threads and function count.

    Returns:
        Median milliseconds per batch of each model.
    """
    batch, own = latency.batch, latency.measure is not None
    example = images.example(batch)
    tensors = tuple(value[torch.arange(batch) % len(value)] for value in example)
    inputs: Inputs = images.layout.arguments(tensors)
    taken: list[list[float]] = [[] for _ in models]
    settle_allocator()
    with TURNS.together():
        # A copy, since forward() may change buffers.
        runs = [prepared(latency, copy.deepcopy(model), inputs) for model in models]
        repeats, seconds = (FUNCTION_REPEATS, 0.0) if own else (1 + NETWORK_REPEATS, NETWORK_SECONDS)
        while len(taken[0]) < repeats and (own or sum(map(sum, taken)) < 1e3 * seconds * len(models)):
            for times, run in zip(taken, runs, strict=True):
                times.append(run())
    return [float(np.median(times)) if own else median(times) for times in taken]


@dataclass(frozen=True)
class _Term:
    """Milliseconds of one layer, and of its share of the other operators, which is proportional to its output channels.

    Attributes:
        times: Measured times of the layer.
        factor: Factor that scales the layers' times to the network's, at most 1.
        rest: Milliseconds of the other operators per output channel.
        axis: Axis of the weight along which the output channels run.
    """

    times: Times
    factor: float
    rest: float
    axis: int

    def __call__(self, sizes: AxisSizes) -> Any:
        return self.factor * self.times(sizes) + self.rest * sizes[self.axis]


def latency_terms(
    model: nn.Module, graph: Graph, layers: Sequence[Layer], images: Images, latency: Latency
) -> list[tuple[str, Cost]]:
    """Milliseconds per batch as functions of the weights' sizes, for :meth:`Costs.use`.

    Layers of equal configuration are measured once. The other operators (norms, activations, adds) take the rest of the
    network's time. This rest is divided among the layers in proportion to their output elements, and each part is
    proportional to the layer's output channels. Where the layers' times exceed the network's, they are scaled down.

    Args:
        model: Module in eval mode.
        graph: The model as captured.
        layers: The layers of the graph.
        images: The calibration set.
        latency: How to measure, or the table that was measured.

    Returns:
        (name of the weight, cost) of each layer; at full widths the costs add up to the network's time.
    """
    configurations = [Configuration.of(graph, layer, latency.batch) for layer in layers]
    total, tables = _measured(model, graph, configurations, images, latency)
    alone = sum(float(tables[configuration](configuration.weight)) for configuration in configurations)
    total = alone if total is None else total
    elements = [math.prod(graph.shape(layer.node)) for layer in layers]
    rest, factor = max(total - alone, 0.0), min(total / alone, 1.0) if alone else 1.0
    terms: list[tuple[str, Cost]] = []
    for layer, configuration, count in zip(layers, configurations, elements, strict=True):
        axis = 0 if layer.depthwise else layer.out_axis
        share = rest * count / sum(elements) / configuration.weight[axis]
        terms.append((layer.weight, _Term(tables[configuration], factor, share, axis)))
    return terms


def _measured(
    model: nn.Module, graph: Graph, configurations: Sequence[Configuration], images: Images, latency: Latency
) -> tuple[float | None, dict[Configuration, Times]]:
    """Milliseconds of the network (None where a table lacks them), and times of each of its layers."""
    once = list(dict.fromkeys(configurations))
    if latency.table is not None:
        table = TimingTable.read(latency.table)
        unknown = [each.key for each in once if each.key not in table.layers]
        if unknown:
            raise BudgetError(
                f"table={latency.table!r} lacks {len(unknown)} of {len(once)} layers, the first is {unknown[0]}: call "
                f"reapx.time_layers with this network and batch={latency.batch} where the device is at hand"
            )
        known = {each: table.layers[each.key].times() for each in once}
        return table.networks.get(network_key(graph, latency.batch)), dict(known)
    (total,) = measure_milliseconds([model], images, latency)
    if latency.measure is None and latency.runtime not in EXPORTING:
        with threads_of(latency.threads):
            return total, {each: measure_layer(each) for each in once}
    return total, {each: time_layer(each, partial(_layer_milliseconds, latency)).times() for each in once}


def _layer_milliseconds(latency: Latency, layer: nn.Module, inputs: Inputs) -> float:
    run = prepared(latency, layer, inputs)
    if latency.measure is not None:
        return run()
    taken = [run()]
    while len(taken) <= REPEATS and sum(taken) < 1e3 * POINT_SECONDS:
        taken.append(run())
    return median(taken)


def write_table(
    path: str | Path, model: nn.Module, graph: Graph, layers: Sequence[Layer], images: Images, latency: Latency
) -> TimingTable:
    """Time a network and its layers into a JSON file, which is written after each layer; what it holds stays."""
    table = TimingTable.read(path) if Path(path).exists() else TimingTable(latency.where)
    key = network_key(graph, latency.batch)
    if key not in table.networks:
        (table.networks[key],) = measure_milliseconds([model], images, latency)
    for layer in layers:
        configuration = Configuration.of(graph, layer, latency.batch)
        if configuration.key not in table.layers:
            table.layers[configuration.key] = time_layer(configuration, partial(_layer_milliseconds, latency))
            table.write(path)
    table.write(path)
    return table
