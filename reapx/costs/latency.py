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
"""Times the whole network is run, unless that takes longer; the median counts."""


@dataclass(frozen=True)
class Latency(Budget):
    """Milliseconds of one forward pass over a batch, measured on this machine.

    What is measured is the model as it is, in eval mode, where it is (on the CPU with ``torch.get_num_threads()``
    threads), without gradients, in its own dtype (float32 as a rule). The time at fewer channels is predicted from
    tables of layer times; another machine, device, number of threads or batch size gives other milliseconds and other
    plans. On a GPU a small batch takes as long as its operators take to start, whatever their widths.

    Attributes:
        amount: Up to 1 a fraction of the original network's milliseconds, above 1 milliseconds.
        batch: Images in a batch.

    Raises:
        BudgetError: ``amount`` is not a positive number, or ``batch`` not a whole number from 1.
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
        """The budget in milliseconds, given those of the full network."""
        return float(self.amount * full if self.amount <= 1 else self.amount)


def measure_milliseconds(models: Sequence[nn.Module], images: Images, batch: int) -> list[float]:
    """Time whole networks on this machine, without gradients.

    Args:
        models: Modules in eval mode, run in turn so that a drift of the machine hits all alike; copies are run.
        images: The calibration set, whose first images are repeated or cut to one batch.
        batch: Images in a batch.

    Returns:
        Median milliseconds a batch of each.
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
    """One layer's milliseconds, with what follows it: the rest of the network per channel of ``weight.shape[axis]``."""

    times: LayerTimes
    factor: float
    rest: float
    axis: int

    def __call__(self, sizes: AxisSizes) -> Any:
        return self.factor * self.times(sizes) + self.rest * sizes[self.axis]


def latency_terms(
    model: nn.Module, graph: Graph, layers: Sequence[Layer], images: Images, batch: int
) -> list[tuple[str, Cost]]:
    """Measure what ``Costs.use(Latency, ...)`` wants: milliseconds a batch as functions of the weights' sizes.

    Layers of equal configuration are measured once. What is not a layer (norms, activations, adds) takes the rest of
    the measured time; it is shared out in proportion to the layers' output elements and grows with their output
    channels. Where the layers alone take longer than the network, they are scaled to it.

    Args:
        model: Module in eval mode.
        graph: The model as captured.
        layers: Its layers.
        images: The calibration set.
        batch: Images in a batch.

    Returns:
        Name of each layer's weight and its cost; at full widths they add up to the measured time of the network.
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
