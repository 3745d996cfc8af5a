"""How much a change of a layer's output matters behind the activations that read it.

A ReLU maps all negative values to zero, so that a change among them does not matter; SiLU, GELU and others flatten
values without making them constant. The square of an activation's slope weighs a residual in front of it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from ..capture.graph import Graph, arguments, operator_name
from ..capture.layers import Layer
from ..capture.tails import Tail

_CONSTANT_BEYOND = {
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "hardsigmoid": (-3.0, 3.0),
    "hardswish": (-3.0, math.inf),
}
_SMOOTH = ("leaky_relu", "elu", "silu", "gelu")
"""Activations that are weighed by their slope, all of them measured in ``benchmarks/activations.py``."""
_STEEPEST_WITHIN = 10.0
"""Their largest slopes lie between this and its negative."""


class Activation(NamedTuple):
    """An activation function, as far as it makes differences smaller.

    Attributes:
        low: Constant up to here.
        high: Constant from here on.
        smooth: Operator, further arguments and the steepest slope of one that is weighed by its slope; else None.
    """

    low: float = -math.inf
    high: float = math.inf
    smooth: tuple[object, tuple[object, ...], tuple[tuple[str, object], ...], float] | None = None

    def relevance(self, wanted: Tensor, passed: Tensor) -> Tensor:
        """How much the difference of each pair of values matters, from 0 to 1."""
        if self.smooth is None:
            alike = ((wanted < self.low) & (passed < self.low)) | ((wanted > self.high) & (passed > self.high))
            return (~alike).to(wanted.dtype)
        ends = [self.value_and_slope(values) for values in (wanted, passed)]
        between = (ends[0][0] - ends[1][0]) / (wanted - passed)
        slopes = [between.nan_to_num_(0.0, 0.0, 0.0), *(slope for _, slope in ends)]
        return torch.stack(slopes).abs().amax(0).div_(self.smooth[3]).square_().clamp_(max=1)

    def value_and_slope(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of a smooth activation, at each value."""
        assert self.smooth is not None
        function, rest, options, _ = self.smooth
        with torch.enable_grad():
            values = values.detach().requires_grad_()
            result: Tensor = function(values, *rest, **dict(options))  # type: ignore[operator]
            (slope,) = torch.autograd.grad(result.sum(), values)
        return result.detach(), slope


def activations_behind(graph: Graph, layer: Layer, tail: Tail, residual: bool) -> frozenset[Activation]:
    """The activations that read all a layer computes, after its norm and residual add; empty if others read it."""
    node = tail.total if residual else tail.norm or layer.node
    if node is None or node in graph.outputs or (tail.total is not None and not residual):
        return frozenset()
    users = graph.users.get(node, [])
    while users and all(operator_name(user) == "getitem" for user in users):
        users = [reader for user in users for reader in graph.users.get(user, [])]
    found = [_activation(user) for user in users]
    return frozenset() if None in found else frozenset(x for x in found if x is not None)


def relevance(activations: frozenset[Activation], wanted: Tensor, passed: Tensor) -> Tensor:
    """The largest of all activations' weights for each pair of values, from 0 to 1."""
    return torch.stack([activation.relevance(wanted, passed) for activation in activations]).amax(0)


def _activation(node: Node) -> Activation | None:
    """What an operator does as an activation; None for others, and for those at which every change matters."""
    name = operator_name(node)
    if name in _SMOOTH:
        smooth = Activation(smooth=(node.target, node.args[1:], tuple(sorted(node.kwargs.items())), 1.0))
        _, slopes = smooth.value_and_slope(torch.linspace(-_STEEPEST_WITHIN, _STEEPEST_WITHIN, 2001))
        return Activation(smooth=(*smooth.smooth[:3], float(slopes.abs().max())))  # type: ignore[index]
    if name in _CONSTANT_BEYOND:
        return Activation(*_CONSTANT_BEYOND[name])
    if name not in ("hardtanh", "clamp"):
        return None
    given, default = arguments(node), (-1.0, 1.0) if name == "hardtanh" else (-math.inf, math.inf)
    keys = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    ends = [given.get(key, end) for key, end in zip(keys, default, strict=True)]
    low, high = (end if given_end is None else given_end for given_end, end in zip(ends, default, strict=True))
    return None if low == -math.inf and high == math.inf else Activation(float(low), float(high))
