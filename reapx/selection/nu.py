"""NU, neuro-unification: a channel is unified with another that can emulate its behaviour.

Let p emulate q with gain a: W_p ← W_p + a W_q and W_q ← 0. The error is ‖X (W - W0)‖², where W0 are the weights before
any unification. Each step takes the pair and the gain with the least error. This error includes the earlier steps, so a
step can compensate for them. The error of the pair alone, ‖X_q W_q - a X_p W_q‖², would ignore them, although the
losses of different steps mostly point the same way. Gains may be negative, and each consumer has its own. The constant
part goes to the bias.

Source: K. Kamma, Y. Isoda, S. Inoue and T. Wada, "Neural Behavior-Based Approach for Neural Network Pruning", IEICE
Trans. Inf. & Syst. E103-D(5), 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _native
from ..capture.graph import Graph
from ..groups.channel_groups import Group
from .paths.consumers import MeasuredConsumer
from .paths.weight_changes import WeightChanges


class Unification(WeightChanges):
    """Weights of the remaining units, into which the weights of the removed units were folded.

    A unit that emulates others and leaves later passes them on to its own partner, multiplied by its own gain.

    Attributes:
        partners: (steps,) int64, the unit that emulates each removed unit; the last unit of a group has no other and
            is its own partner.
        errors: (steps,) float64, change of the total error at each step, as a share of the variance of the consumers'
            outputs, averaged over consumers; a step may lower the total.
    """

    def __init__(self, graph: Graph, group: Group, consumers: Sequence[MeasuredConsumer], steps: int) -> None:
        merges = min(steps, max(group.size - 1, 0))
        task = unify(consumers, merges)
        order, partners, errors = task.removed, task.partner, task.errors
        if steps > merges:
            gone = torch.zeros(group.size, dtype=torch.bool, device=order.device).index_fill_(0, order, True)
            last = (~gone).nonzero()[0]
            order, partners = torch.cat([order, last]), torch.cat([partners, last])
            rest = sum(_energy(consumer) for consumer in consumers) / max(len(consumers), 1) - float(errors.sum())
            errors = torch.cat([errors, torch.full((1,), rest, dtype=errors.dtype, device=errors.device)])
        super().__init__(graph, group, consumers, order)
        self.partners, self.errors = partners, errors
        self._gains = [consumer.gains for consumer in task.consumers]

    def weights(self, index: int, counts: Sequence[int]) -> Tensor:
        """The folded weights of one consumer; see :meth:`WeightChanges.weights`."""
        entry, gains = self._consumers[index], self._gains[index]
        order, partners = self.order.tolist(), self.partners.tolist()
        weight, done, found = entry.weight.clone(), 0, []
        for count in counts:
            for step in range(done, count):
                own = entry.columns[order[step]]
                if step < len(gains):
                    weight[:, entry.columns[partners[step]]] += gains[step] * weight[:, own]
                weight[:, own] = 0.0
            done = count
            found.append(weight.clone())
        return torch.stack(found) if found else weight.new_empty(0, *weight.shape)


def unify(consumers: Sequence[MeasuredConsumer], steps: int, *, table: Tensor | None = None) -> _native.PairTask:
    """Unify the pair with the least total error, ``steps`` times.

    Args:
        consumers: All consumers of one group, with moments.
        steps: Number of units that leave; fewer than the group has.
        table: (units, units) float64, overwritten by the errors of all pairs before the first step; None to skip it.

    Returns:
        The task with its outputs filled in.
    """
    device = consumers[0].weight.device
    task = _native.PairTask(
        consumers=[
            _native.PairConsumer(
                consumer.known_moments.gram.contiguous(),
                consumer.weight.clone(memory_format=torch.contiguous_format),
                consumer.columns.contiguous(),
                consumer.scale / len(consumers),
                consumer.weight.new_empty(steps),
            )
            for consumer in consumers
        ],
        table=table,
        removed=torch.empty(steps, dtype=torch.int64, device=device),
        partner=torch.empty(steps, dtype=torch.int64, device=device),
        errors=torch.empty(steps, dtype=torch.float64, device=device),
    )
    _native.pair_scan([task])
    return task


def _energy(consumer: MeasuredConsumer) -> float:
    """‖X W‖² over the features of all units, as a share of the outputs' variance: the error of removing all units."""
    columns = consumer.columns.flatten()
    weight = consumer.weight[:, columns]
    return consumer.scale * float(((weight @ consumer.known_moments.gram[columns][:, columns]) * weight).sum())
