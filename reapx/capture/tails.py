"""What follows a layer, as far as its reconstruction is concerned: a batch norm, and a residual add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from .graph import Graph, arguments, is_tensor, operator_name
from .layers import NORMS, Layer, calls_of

_NO_OPERATION = ("dropout", "feature_dropout", "clone", "contiguous", "detach", "alias")
"""Operators that change nothing, between a layer and the add."""


@dataclass(frozen=True)
class Tail:
    """The operators behind a layer that matter for its reconstruction.

    Attributes:
        norm: The batch norm that is the only operator to read the layer, or None.
        total: The residual add at which the branch ends, or None.
        other: The other operand of that add, or None.
    """

    norm: Node | None = None
    total: Node | None = None
    other: Node | None = None


def tail_of(graph: Graph, layer: Layer) -> Tail:
    """Follow the layer's output through a norm and operators that change nothing, up to a residual add."""
    node, norm = layer.node, None
    while node not in graph.outputs:
        users = graph.users.get(node, [])
        if len(users) != 1:
            break
        user = users[0]
        operator = operator_name(user)
        if operator in NORMS and norm is None and _is_norm_of(graph, user, layer):
            norm = user
        elif operator == "add":
            return _residual(graph, node, user, norm)
        elif operator not in _NO_OPERATION and operator != "getitem":
            break
        node = user
    return Tail(norm)


def _is_norm_of(graph: Graph, norm: Node, layer: Layer) -> bool:
    """Whether a batch norm normalises the layer's outputs, with a running mean that no other operator uses.

    Of a layer that is called several times, the same norm must follow every call, and nothing else read it.
    """
    mean = graph.parameter_of(norm.args[3])
    along_outputs = layer.spatial > 0 or len(graph.shape(layer.node)) == 2
    if not along_outputs or mean is None:
        return False
    calls = {call.node for call in calls_of(graph, layer)}
    norms = graph.readers(mean)
    if len(calls) == 1:
        return len(norms) == 1
    alike = all(operator_name(x) in NORMS and x.args[1:5] == norm.args[1:5] for x in norms)
    followed = all(graph.users.get(node, []) == [x] for x in norms for node in calls if x.args[0] is node)
    return alike and followed and len(norms) == len(calls) and {x.args[0] for x in norms} == calls


def _residual(graph: Graph, node: Node, add: Node, norm: Node | None) -> Tail:
    operands = add.args[:2]
    other = operands[1] if operands[0] is node else operands[0]
    plain = is_tensor(other) and other in graph.varying and other is not node
    if not plain or add.kwargs.get("alpha", 1) != 1:
        return Tail(norm)
    assert isinstance(other, Node)
    if graph.shape(other) != graph.shape(node):
        return Tail(norm)
    return Tail(norm, add, other)


def norm_affine(graph: Graph, norm: Node, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Per-channel scale and shift (C,), float64, of a batch norm in eval mode."""
    weight, bias, mean, variance = (graph.parameter_of(argument) for argument in norm.args[1:5])
    assert mean is not None and variance is not None
    epsilon = float(arguments(norm)["eps"])
    scale = (tensors[variance].double() + epsilon).rsqrt()
    if weight is not None:
        scale = scale * tensors[weight].double()
    shift = -tensors[mean].double() * scale
    return scale, shift if bias is None else shift + tensors[bias].double()
