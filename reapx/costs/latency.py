"""A budget in milliseconds, measured on this machine."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..calibration.images import Images
from ..capture.graph import Graph
from ..capture.layers import Layer
from ..errors import BudgetError
from .budget import AxisSizes, Budget, Cost
from .layer_times import Configuration, LayerTimes, measure_layer, median, milliseconds, settle_allocator

NETWORK_REPEATS, NETWORK_SECONDS = 15, 3.0
"""Number of timed runs of the whole network, and the seconds after which timing ends earlier; the median counts."""


@dataclass(frozen=True)
class Latency(Budget):
    """Milliseconds of one forward pass over a batch, measured on this machine.

    The model is timed in eval mode, without gradients, on its own device and in its own dtype; on the CPU with
    ``torch.get_num_threads()`` threads. The time at smaller widths is predicted from tables of layer times. Another
    machine, device, number of threads or batch size gives other milliseconds and other plans. On a GPU, a small batch
    takes as long as launching its operators, whatever their widths.

    Attributes:
        amount: Up to 1 a fraction of the original network's milliseconds, above 1 a number of milliseconds.
        batch: Number of images in a batch.

    Raises:
        BudgetError: ``amount`` is not a positive finite number, or ``batch`` not a whole number from 1.
    """

    batch: int = 1

    unit = "ms"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.batch, int) or isinstance(self.batch, bool) or self.batch < 1:
            raise BudgetError(
                f"{type(self).__name__}({self.amount!r}, batch={self.batch!r}): give the number of images in a batch, "
                "a whole number from 1"
            )

    def limit(self, full: float) -> float:
        """The budget in milliseconds, given the milliseconds of the full network."""
        return float(self.amount * full if self.amount <= 1 else self.amount)


def measure_milliseconds(models: Sequence[nn.Module], images: Images, batch: int) -> list[float]:
    """Time whole networks on this machine, without gradients.

    Args:
        models: Modules in eval mode. Copies are run in turn, so that a drift of the machine's speed affects all alike.
        images: The calibration set; its first images are repeated or cut to one batch.
        batch: Number of images in a batch.

    Returns:
        Median milliseconds per batch of each model.
    """
    copies = [copy.deepcopy(model) for model in models]  # forward() may change buffers
    example = images.example(batch)
    tensors = tuple(value[torch.arange(batch) % len(value)] for value in example)
    taken: list[list[float]] = [[] for _ in models]
    settle_allocator()
    with torch.no_grad():
        while len(taken[0]) < 1 + NETWORK_REPEATS and sum(map(sum, taken)) < 1e3 * NETWORK_SECONDS * len(models):
            for own, copied in zip(taken, copies, strict=True):
                given = tuple(value.clone() for value in tensors)  # forward() may write to its input
                own.append(milliseconds(partial(images.call, copied, given), images.device))
    return [median(own) for own in taken]


@dataclass(frozen=True)
class _Term:
    """Milliseconds of one layer, and of its share of the other operators, which is proportional to its output channels.

    Attributes:
        times: Measured times of the layer.
        factor: Factor that scales the layers' times to the network's, at most 1.
        rest: Milliseconds of the other operators per output channel.
        axis: Axis of the weight along which the output channels run.
    """

    times: LayerTimes
    factor: float
    rest: float
    axis: int

    def __call__(self, sizes: AxisSizes) -> Any:
        return self.factor * self.times(sizes) + self.rest * sizes[self.axis]


def latency_terms(
    model: nn.Module, graph: Graph, layers: Sequence[Layer], images: Images, batch: int
) -> list[tuple[str, Cost]]:
    """Measure milliseconds per batch as functions of the weights' sizes, for :meth:`Costs.use`.

    Layers of equal configuration are measured once. The other operators (norms, activations, adds) take the rest of the
    network's time. This rest is divided among the layers in proportion to their output elements, and each part is
    proportional to the layer's output channels. Where the layers' times exceed the network's, they are scaled down.

    Args:
        model: Module in eval mode.
        graph: The model as captured.
        layers: The layers of the graph.
        images: The calibration set.
        batch: Number of images in a batch.

    Returns:
        (name of the weight, cost) of each layer; at full widths the costs add up to the network's measured time.
    """
    (total,) = measure_milliseconds([model], images, batch)
    configurations = [Configuration.of(graph, layer, batch) for layer in layers]
    tables = {configuration: measure_layer(configuration) for configuration in dict.fromkeys(configurations)}
    alone = sum(float(tables[configuration](configuration.weight)) for configuration in configurations)
    elements = [math.prod(graph.shape(layer.node)) for layer in layers]
    rest, factor = max(total - alone, 0.0), min(total / alone, 1.0) if alone else 1.0
    terms: list[tuple[str, Cost]] = []
    for layer, configuration, count in zip(layers, configurations, elements, strict=True):
        axis = 0 if layer.depthwise else layer.out_axis
        share = rest * count / sum(elements) / configuration.weight[axis]
        terms.append((layer.weight, _Term(tables[configuration], factor, share, axis)))
    return terms
