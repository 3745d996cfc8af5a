"""ThiNet: the channels with the smallest summed contribution to the next layer leave; the others are scaled.

Source: J.-H. Luo, J. Wu and W. Lin, "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression", ICCV
2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..capture.graph import Graph
from ..groups.channel_groups import Group
from .paths.channel_grams import shared_gram
from .paths.consumers import MeasuredConsumer
from .paths.weight_changes import WeightChanges

_DAMPING = 1e-6
"""Pull of the scales towards 1, as a fraction of the mean squared contribution; it only avoids singular systems."""


def thinet_order(consumers: Sequence[MeasuredConsumer], steps: int) -> Tensor:
    """(steps,) int64 units; greedily, each step removes the unit that keeps ‖Σ_{c removed} X_c W_c‖² smallest."""
    gram = shared_gram(consumers).cpu()
    cost, removed = gram.diagonal().clone(), torch.zeros(len(gram), dtype=torch.bool)
    order = []
    for _ in range(steps):
        unit = int(torch.where(removed, torch.inf, cost).argmin())
        order.append(unit)
        removed[unit] = True
        cost += 2 * gram[unit]
    return torch.tensor(order, dtype=torch.int64)


class ChannelScales(WeightChanges):
    """One scale s_c for each remaining unit and each consumer, which minimises ‖Y - Σ_c s_c X_c W_c‖²."""

    def __init__(self, graph: Graph, group: Group, consumers: Sequence[MeasuredConsumer], order: Tensor) -> None:
        super().__init__(graph, group, consumers, order)
        self._grams = [consumer.contributions for consumer in consumers]

    def weights(self, index: int, counts: Sequence[int]) -> Tensor:
        """The scaled weights of one consumer; see :meth:`WeightChanges.weights`."""
        entry, gram = self._consumers[index], self._grams[index]
        found = entry.weight.repeat(len(counts), 1, 1)
        for weight, count in zip(found, counts, strict=True):
            stays = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
            stays[self.order[:count]] = False
            weight[:, entry.columns] *= _scales(gram, stays)[:, None]
        return found


def _scales(gram: Tensor, stays: Tensor) -> Tensor:
    """(units,) least-squares scales; 0 for removed units."""
    own = gram[stays][:, stays]
    ridge = _DAMPING * float(own.diagonal().mean()) if len(own) else 0.0
    eye = torch.eye(len(own), dtype=own.dtype, device=own.device)
    scales = gram.new_zeros(len(gram))
    if ridge > 0:
        scales[stays] = torch.linalg.solve(own + ridge * eye, gram[stays].sum(1) + ridge)
    else:
        scales[stays] = 1.0
    return scales
