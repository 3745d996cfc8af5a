"""Refits: the weights of a group's consumers, refitted at any cut of the group's path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _native
from ..graph import Graph
from ..groups import Consumer, Group
from ..images import TensorStore
from ..layers import norm_affine, tail_of
from ..moments import Moments


@dataclass(frozen=True)
class _Part:
    """One consumer: its full weights (outputs, features) and columns as selection has them, its input's mean, αλ."""

    consumer: Consumer
    weight: Tensor
    columns: Tensor
    mean: Tensor
    penalty: float


class Refits:
    """Refitted tensors of the original network, with zero columns where units have left.

    Everything else in the network is as it was, so the inputs of the consumers are those of the original. What the
    weights are made of is as large as the Gram matrices; it lies in ``store``, which sends it to disk past its limit.
    """

    def __init__(
        self,
        graph: Graph,
        group: Group,
        moments: Mapping[str, list[Moments]],
        task: _native.PathTask,
        ridges: Sequence[float],
        store: TensorStore,
    ) -> None:
        self._graph, self._group, self._order, self._store = graph, group, task.order, store
        self._parts: list[_Part] = []
        for index, (consumer, given) in enumerate(zip(group.consumers, task.consumers, strict=True)):
            own = moments[consumer.layer.weight][consumer.part]
            store.put((group.name, index, "factor"), given.factor)
            store.put((group.name, index, "residual"), given.residual)
            mean, penalty = own.total / max(own.rows, 1), ridges[index] * given.scale
            self._parts.append(_Part(consumer, given.weight, given.columns, mean, penalty))

    def changes(self, counts: Sequence[int]) -> list[dict[str, Tensor]]:
        """What to add to the network's tensors when the path's first units have left.

        Args:
            counts: Numbers of units that have left, ascending.

        Returns:
            For each count: qualified name -> float64 difference, of weights and of biases or running means.
        """
        found: list[dict[str, Tensor]] = [{} for _ in counts]
        for index, part in enumerate(self._parts):
            for changed, count, now in zip(found, counts, self._weights(index, counts), strict=True):
                gone = part.columns[self._order[:count]].flatten()
                self._add(changed, part.consumer, now - part.weight, gone, part.mean)
        return found

    def clear(self, tensors: dict[str, Tensor], count: int) -> None:
        """Put zeros into the first ``count`` units' columns of those consumers' weights that are there."""
        for part in self._parts:
            layer = part.consumer.layer
            if count and layer.weight in tensors:
                matrix = layer.matrix(tensors[layer.weight]).clone()
                matrix[part.consumer.part][:, part.columns[self._order[:count]].flatten()] = 0.0
                tensors[layer.weight] = layer.weight_from(matrix, tensors[layer.weight])

    def penalty(self, count: int) -> float:
        """What damping adds to the path's error after ``count`` removals: λ ‖W - W₀‖², averaged over consumers."""
        total = 0.0
        for index, part in enumerate(self._parts):
            change = self._weights(index, [count])[0] - part.weight
            total += part.penalty * float(change.square().sum())
        return total / max(len(self._parts), 1)

    def _weights(self, index: int, counts: Sequence[int]) -> Tensor:
        """(counts, outputs, features) weights of one consumer, as selection scales them."""
        part = self._parts[index]
        solved = torch.empty(len(counts), *part.weight.shape, dtype=torch.float64)
        task = _native.CutsTask(
            part.weight,
            part.columns,
            self._order,
            self._store.get((self._group.name, index, "factor")),
            self._store.get((self._group.name, index, "residual")),
            torch.tensor(counts, dtype=torch.int64),
            solved,
        )
        _native.path_weights([task])
        return solved

    def _add(self, changed: dict[str, Tensor], consumer: Consumer, change: Tensor, gone: Tensor, mean: Tensor) -> None:
        """Write one consumer's change of (scaled) weights as changes of the network's tensors."""
        layer, tensors = consumer.layer, self._graph.tensors
        norm = tail_of(self._graph, layer).norm
        matrix = layer.matrix(tensors[layer.weight])
        _, outputs, _ = matrix.shape
        rows = slice(consumer.part * outputs, (consumer.part + 1) * outputs)
        if norm is not None:
            scale = norm_affine(self._graph, norm, tensors)[0][rows]
            usable = scale.abs() > 1e-8 * scale.abs().max()
            change = torch.where(usable, 1 / torch.where(usable, scale, 1.0), 0.0)[:, None] * change
            change[:, gone] = -matrix[consumer.part][:, gone]
        full = torch.zeros_like(matrix)
        full[consumer.part] = change
        known = changed.get(layer.weight)
        full = layer.weight_from(full, tensors[layer.weight].double())
        changed[layer.weight] = full if known is None else known + full
        shift = torch.zeros(matrix.shape[0] * outputs, dtype=torch.float64)
        shift[rows] = -change @ mean
        name = layer.bias
        if name is None and norm is not None:
            name = self._graph.parameter_of(norm.args[3])
            shift = -shift
        if name is not None:
            changed[name] = changed[name] + shift if name in changed else shift


def combined(tensors: Mapping[str, Tensor], changes: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that several changes make of a network's, those that they touch only."""
    found: dict[str, Tensor] = {}
    for change in changes:
        for name, value in change.items():
            found[name] = found.get(name, tensors[name].double()) + value
    return {name: value.to(tensors[name].dtype) for name, value in found.items()}
