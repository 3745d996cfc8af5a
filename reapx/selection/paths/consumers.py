"""The consumers of a group with the moments that were measured of their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ...capture.graph import Graph
from ...capture.tails import norm_affine, tail_of
from ...groups.channel_groups import Group
from ...moments.moments import Moments


@dataclass(frozen=True)
class MeasuredConsumer:
    """One consumer of a group, with all that selection needs to know of it.

    Attributes:
        weight: (outputs, features) float64, rows scaled by the norm that follows the layer.
        columns: (units, count) int64, the features of each unit.
        moments: Moments of the layer's input, centred where an intercept is fitted; None for methods that do not
            use data.
    """

    weight: Tensor
    columns: Tensor
    moments: Moments | None = None

    @property
    def known_moments(self) -> Moments:
        """The moments, for methods that need them.

        Raises:
            ValueError: the consumer was not measured.
        """
        if self.moments is None:
            raise ValueError("this method of selection needs the moments of every consumer")
        return self.moments

    @cached_property
    def scale(self) -> float:
        """Factor that turns squared errors into shares of the outputs' variance; 1 where the outputs are constant."""
        signal = float(((self.weight @ self.known_moments.gram) * self.weight).sum())
        return 1 / signal if signal > 0 else 1.0

    @cached_property
    def contributions(self) -> Tensor:
        """(units, units) float64 K, the inner products of the units' contributions to the consumer's outputs.

        With Z_c = X_c W_c, the outputs are Y = Σ_c Z_c and::

            K_cd = <Z_c, Z_d> = sum of G_cd ∘ (W_c W_dᵀ),     sum of K = ‖Y‖²
        """
        units, taps = self.columns.shape
        flat = self.columns.flatten()
        products = self.known_moments.gram * (self.weight.T @ self.weight)
        return products[flat][:, flat].reshape(units, taps, units, taps).sum((1, 3))


def measured_consumers(
    graph: Graph, group: Group, moments: Mapping[str, list[Moments]] | None
) -> list[MeasuredConsumer]:
    """A group's consumers, with their moments.

    Args:
        moments: Weight name -> moments of each conv group of that layer; None for methods that do not use data.
    """
    consumers = []
    for consumer in group.consumers:
        layer = consumer.layer
        weight = layer.matrix(graph.tensors[layer.weight])
        norm = tail_of(graph, layer).norm
        if norm is not None:
            scale, _ = norm_affine(graph, norm, graph.tensors)
            weight = weight * scale.reshape(weight.shape[0], weight.shape[1], 1)
        intercept = layer.bias is not None or norm is not None
        own = None if moments is None else moments[layer.weight][consumer.conv_group].centred(intercept)
        consumers.append(MeasuredConsumer(weight[consumer.conv_group], consumer.columns().to(weight.device), own))
    return consumers
