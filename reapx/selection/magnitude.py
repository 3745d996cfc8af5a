"""Selection by norms, without data: magnitude (incoming weights) and output norm (outgoing weights, OP)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..capture.graph import Graph
from ..groups.channel_groups import Group
from .paths.consumers import MeasuredConsumer


def magnitude_order(graph: Graph, group: Group, steps: int) -> Tensor:
    """(steps,) int64 units with the smallest L2 norms of incoming weights, over all producers.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (there L1).
    """
    total = torch.zeros(group.size, dtype=torch.float64)
    for layer in group.producers:
        weight = graph.tensors[layer.weight].double().transpose(0, layer.out_axis).flatten(1)
        rows = torch.from_numpy(group.cuts[layer.weight, layer.out_axis])
        total += weight.square().sum(1).cpu()[rows].sum(1)
    return total.argsort(stable=True)[:steps]


def output_norm_order(consumers: Sequence[MeasuredConsumer], steps: int) -> Tensor:
    """(steps,) int64 units with the smallest ‖W_c‖² of outgoing weights, summed over consumers.

    Each consumer counts by the share of the unit in its squared weights. A norm that follows a consumer is folded in.

    Source: T. He et al., "Reshaping Deep Neural Network for Fast Decoding by Node-Pruning", ICASSP 2014 (there the
    mean of absolute values).
    """
    total = consumers[0].weight.new_zeros(len(consumers[0].columns))
    for consumer in consumers:
        square = consumer.weight.square()
        total += square[:, consumer.columns].sum((0, 2)) / square.sum().clamp(min=1e-300)
    return total.cpu().argsort(stable=True)[:steps]
