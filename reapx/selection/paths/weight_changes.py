"""Weight changes: the difference that a path's removals make to the tensors of a network, at any cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...capture.graph import Graph
from ...capture.tails import norm_affine, tail_of
from ...groups.channel_groups import Consumer, Group
from .consumers import MeasuredConsumer


@dataclass(frozen=True)
class ConsumerWeights:
    """One consumer with its original weights.

    Attributes:
        consumer: The layer and conv group that the weights belong to.
        weight: (outputs, features) float64, rows scaled by the norm that follows the layer.
        columns: (units, count) int64, the features of each unit.
        mean: (features,) float64, mean of the layer's input patches.
    """

    consumer: Consumer
    weight: Tensor
    columns: Tensor
    mean: Tensor


class WeightChanges(ABC):
    """New weights for a group's consumers: zero in the columns of removed units, changed in the others.

    The rest of the network keeps its tensors, so each consumer still reads the original network's activations.

    Attributes:
        order: (steps,) int64 units, the first to leave first.
    """

    def __init__(self, graph: Graph, group: Group, measured: Sequence[MeasuredConsumer], order: Tensor) -> None:
        self._graph, self._group, self.order = graph, group, order
        self._consumers: list[ConsumerWeights] = []
        for consumer, own in zip(group.consumers, measured, strict=True):
            moments = own.known_moments
            self._consumers.append(
                ConsumerWeights(consumer, own.weight, own.columns, moments.total / max(moments.rows, 1))
            )

    @abstractmethod
    def weights(self, index: int, counts: Sequence[int]) -> Tensor:
        """The weights of one consumer at several cuts.

        Args:
            index: Position of the consumer in ``group.consumers``.
            counts: Numbers of removed units, ascending.

        Returns:
            (counts, outputs, features) float64, rows scaled by the norm that follows the layer.
        """

    def changes(self, counts: Sequence[int]) -> list[dict[str, Tensor]]:
        """The differences from the network's tensors once the first units of the path are removed.

        Args:
            counts: Numbers of removed units, ascending.

        Returns:
            For each count: qualified name -> float64 difference of a weight, and of the bias or running mean that takes
            the intercept.
        """
        found: list[dict[str, Tensor]] = [{} for _ in counts]
        for index, entry in enumerate(self._consumers):
            for changed, count, now in zip(found, counts, self.weights(index, counts), strict=True):
                gone = entry.columns[self.order[:count]].flatten()
                self._add(changed, entry.consumer, now - entry.weight, gone, entry.mean)
        return found

    def clear(self, tensors: dict[str, Tensor], count: int) -> None:
        """Set the columns of the first ``count`` units to zero, in those consumers' weights that ``tensors`` holds."""
        for entry in self._consumers:
            layer = entry.consumer.layer
            if count and layer.weight in tensors:
                matrix = layer.matrix(tensors[layer.weight]).clone()
                matrix[entry.consumer.conv_group][:, entry.columns[self.order[:count]].flatten()] = 0.0
                tensors[layer.weight] = layer.weight_from(matrix, tensors[layer.weight])

    def _add(self, changed: dict[str, Tensor], consumer: Consumer, change: Tensor, gone: Tensor, mean: Tensor) -> None:
        """Add one consumer's change, of weights scaled by its norm, to the differences of the network's tensors."""
        layer, tensors = consumer.layer, self._graph.tensors
        norm = tail_of(self._graph, layer).norm
        matrix = layer.matrix(tensors[layer.weight])
        _, outputs, _ = matrix.shape
        rows = slice(consumer.conv_group * outputs, (consumer.conv_group + 1) * outputs)
        if norm is not None:
            scale = norm_affine(self._graph, norm, tensors)[0][rows]
            usable = scale.abs() > 1e-8 * scale.abs().max()
            change = torch.where(usable, 1 / torch.where(usable, scale, 1.0), 0.0)[:, None] * change
            change[:, gone] = -matrix[consumer.conv_group][:, gone]
        full = torch.zeros_like(matrix)
        full[consumer.conv_group] = change
        known = changed.get(layer.weight)
        full = layer.weight_from(full, tensors[layer.weight].double())
        changed[layer.weight] = full if known is None else known + full
        shift = change.new_zeros(matrix.shape[0] * outputs)
        shift[rows] = -change @ mean
        name = layer.bias
        if name is None and norm is not None:
            name = self._graph.parameter_of(norm.args[3])
            shift = -shift
        if name is not None:
            changed[name] = changed[name] + shift if name in changed else shift


def combined(tensors: Mapping[str, Tensor], changes: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The sum of a network's tensors and several differences, for those tensors that differ."""
    found: dict[str, Tensor] = {}
    for change in changes:
        for name, value in change.items():
            found[name] = found.get(name, tensors[name].double()) + value
    return {name: value.to(tensors[name].dtype) for name, value in found.items()}


def cut_tensors(
    tensors: Mapping[str, Tensor],
    differences: Sequence[Mapping[str, Tensor]],
    made: Sequence[tuple[WeightChanges, int]],
) -> dict[str, Tensor]:
    """The sum of a network's tensors and several differences, with exact zeros where removed units are read.

    Args:
        tensors: Qualified name -> tensor of the network.
        differences: What :meth:`WeightChanges.changes` returned for each group.
        made: Each group's weight changes, and the number of its removed units.
    """
    found = combined(tensors, differences)
    for changes, count in made:
        changes.clear(found, count)
    return found
