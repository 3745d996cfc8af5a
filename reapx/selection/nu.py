"""NU, neuro-unification: a channel whose behaviour another can emulate is unified with it.

Letting p emulate q with gain a, W_p ← W_p + a W_q and W_q ← 0, makes the error ‖X (W - W0)‖², where W0 are the weights
before any unification; the pair and the gain that make it least are taken, and so on. So each step makes up for what
those before it did, where a pair's own ‖X_q W_q - a X_p W_q‖² would forget it: what is lost mostly points the same way.
The gain may be negative and is each consumer's own; what is constant goes to the bias.

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
    """Weights into which those of the units that have left were folded.

    A unit that takes over others and leaves later hands all of them on, with its own gain.

    Attributes:
        partners: (steps,) int64, the unit that emulates each; a unit that nobody is left to emulate is its own.
        errors: (steps,) float64, what each step adds to the error of all so far, as a share of the variance of the
            consumers' outputs, averaged over consumers. One may lower it.
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
        """The folded weights of one consumer."""
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
    """Unify the pair with which the error of all so far is least, ``steps`` times.

    Args:
        consumers: Consumers, with moments.
        steps: Fewer than there are units.
        table: (units, units) float64, overwritten by the errors of all pairs before the first step.
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
    """‖X W‖² of all units, as a share: the error where none is left."""
    columns = consumer.columns.flatten()
    weight = consumer.weight[:, columns]
    return consumer.scale * float(((weight @ consumer.known_moments.gram[columns][:, columns]) * weight).sum())
