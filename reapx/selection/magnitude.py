"""Magnitude: the channels with the smallest weights leave first; no data is looked at."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import Graph
from ..groups import Group


def magnitude_order(graph: Graph, group: Group, steps: int) -> Tensor:
    """(steps,) int64 units, by the L2 norm of the weights that produce each, over all producers.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (there L1).
    """
    total = torch.zeros(group.size, dtype=torch.float64)
    for layer in group.producers:
        weight = graph.tensors[layer.weight].double().transpose(0, layer.out_axis).flatten(1)
        rows = torch.from_numpy(group.cuts[layer.weight, layer.out_axis])
        total += weight.square().sum(1).cpu()[rows].sum(1)
    return total.argsort(stable=True)[:steps]
