"""The weights of a group's consumers, refitted by least squares at any cut of the group's path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _native
from ...calibration.store import TensorStore
from ...capture.graph import Graph
from ...groups.channel_groups import Group
from .consumers import MeasuredConsumer
from .weight_changes import WeightChanges


class RefittedWeights(WeightChanges):
    """Refitted weights at any cut, computed on demand from the factors of the path.

    The factors are as large as the Gram matrices. ``store`` holds them and moves them to disk past its limit.
    """

    def __init__(
        self,
        graph: Graph,
        group: Group,
        consumers: Sequence[MeasuredConsumer],
        task: _native.PathTask,
        ridges: Sequence[float],
        store: TensorStore,
    ) -> None:
        super().__init__(graph, group, consumers, task.order)
        self._store = store
        self._penalties = [
            ridge * task_consumer.scale for ridge, task_consumer in zip(ridges, task.consumers, strict=True)
        ]
        for index, task_consumer in enumerate(task.consumers):
            store.put((group.name, index, "factor"), task_consumer.factor)
            store.put((group.name, index, "residual"), task_consumer.residual)

    def penalty(self, count: int) -> float:
        """The damping's part of the path's error after ``count`` removals: λ ‖W - W₀‖², averaged over consumers."""
        total = 0.0
        for index, (entry, penalty) in enumerate(zip(self._consumers, self._penalties, strict=True)):
            change = self.weights(index, [count])[0] - entry.weight
            total += penalty * float(change.square().sum())
        return total / max(len(self._consumers), 1)

    def weights(self, index: int, counts: Sequence[int]) -> Tensor:
        """The refitted weights of one consumer; see :meth:`WeightChanges.weights`."""
        entry = self._consumers[index]
        solved = entry.weight.new_empty(len(counts), *entry.weight.shape)
        task = _native.CutsTask(
            entry.weight,
            entry.columns,
            self.order,
            self._store.get((self._group.name, index, "factor")),
            self._store.get((self._group.name, index, "residual")),
            torch.tensor(counts, dtype=torch.int64).to(entry.weight.device),
            solved,
        )
        _native.path_weights([task])
        return solved
