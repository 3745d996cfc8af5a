"""The flow of tensors through a captured graph; operators that read only sizes are left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from ..capture.dependence import ancestors
from ..capture.graph import Graph, arguments, operator_name
from ..capture.layers import NORMS, Layer, describe, name_of
from ..errors import InputError

DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_COPIES = ("clone", "alias", "contiguous", "detach", "lift_fresh_copy")
_WHOLE = 2**62
"""A slice whose end is larger is open-ended."""

_NONNEGATIVE = frozenset("relu relu6 sigmoid hardsigmoid softmax softplus exp abs square".split())
_KEEPS_SIGN = frozenset(
    "max_pool1d max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d "
    "adaptive_max_pool2d mean sum slice reshape flatten unflatten squeeze unsqueeze permute transpose expand "
    "upsample_nearest1d upsample_nearest2d upsample_linear1d upsample_bilinear2d to _to_copy".split()
)


def carries(node: Node) -> bool:
    """Whether a node's value is a tensor or contains one, rather than a size."""
    value = node.meta.get("val")
    parts = value if isinstance(value, tuple | list) else [value]
    return any(isinstance(part, Tensor) for part in parts)


@dataclass(frozen=True)
class ValueFlow:
    """A captured graph with one input and one output, as tensors flow through it.

    Attributes:
        graph: The graph.
        start: The image input.
        end: The node whose value the model returns.
        users: Node -> operators that read it and on which the output depends, in execution order.
    """

    graph: Graph
    start: Node
    end: Node
    users: dict[Node, list[Node]]

    @classmethod
    def of(cls, graph: Graph) -> ValueFlow:
        """The flow of a captured graph.

        Raises:
            InputError: the graph does not have one tensor input and one tensor output.
        """
        for name, found in (("inputs", graph.inputs), ("outputs", graph.outputs)):
            if len(found) != 1:
                raise InputError(
                    f"the model has {len(found)} tensor {name}: a serial network has one. Serialise the part of the "
                    "model from one image tensor to one output tensor"
                )
        wanted: set[Node] = set()
        stack = list(graph.outputs)
        while stack:
            node = stack.pop()
            if node not in wanted:
                wanted.add(node)
                stack.extend(argument for argument in node.all_input_nodes if carries(argument))
        users: dict[Node, list[Node]] = {}
        for node in graph.nodes:
            if node in wanted:
                for argument in dict.fromkeys(node.all_input_nodes):
                    users.setdefault(argument, []).append(node)
        return cls(graph, graph.inputs[0], graph.outputs[0], users)

    def sources(self, node: Node) -> list[Node]:
        """The tensors that a node reads, without stored parameters and buffers."""
        return [a for a in dict.fromkeys(node.all_input_nodes) if carries(a) and a not in self.graph.parameters]

    def meeting(self, fork: Node) -> Node:
        """The first node through which all paths from a fork to the output pass."""
        ways = set(self.users[fork])
        while True:
            first = min(ways, key=lambda node: int(node.meta["order"]))
            ways.remove(first)
            if not ways:
                return first
            ways.update(self.users.get(first, ()))

    def between(self, fork: Node, meeting: Node) -> list[Node]:
        """The operators on the paths from a fork to the node where they meet, including that node."""
        first = fork.meta.get("order", -1)
        inside = ancestors([meeting])
        return [n for n in self.graph.nodes if first < n.meta["order"] <= meeting.meta["order"] and n in inside]

    def nonnegative(self, node: Node) -> bool:
        """Whether the operators that compute a value guarantee that it is not negative."""
        while node.op == "call_function":
            operator = operator_name(node)
            if operator in _NONNEGATIVE or _clamped(node, operator):
                return True
            padded = operator in ("pad", "constant_pad_nd") and (arguments(node).get("value") or 0) >= 0
            if not (padded or operator in _KEEPS_SIGN or operator in DROPOUTS or is_idle(node)):
                return False
            node = self.sources(node)[0]
        return False


def _clamped(node: Node, operator: str) -> bool:
    key = {"clamp": "min", "clamp_min": "min", "hardtanh": "min_val"}.get(operator)
    low = arguments(node)[key] if key else None
    return isinstance(low, int | float) and low >= 0


def is_idle(node: Node) -> bool:
    """Whether an operator returns its input unchanged in eval mode: copies, dropout, a slice of everything."""
    operator = operator_name(node)
    if operator == "getitem":
        source = node.args[0]
        return isinstance(source, Node) and operator_name(source) in NORMS and bool(node.args[1] == 0)
    if operator in DROPOUTS:
        return arguments(node)["train"] is False
    if operator == "slice":
        given = arguments(node)
        start, end, step = given["start"], given["end"], given["step"]
        open_ended = end is None or (isinstance(end, int) and end > _WHOLE)
        return start in (None, 0) and step == 1 and open_ended
    return operator in _COPIES


def plain_layer(graph: Graph, node: Node) -> Layer | str | None:
    """As ``describe``, for layers that have a serial form: those over at most two spatial axes."""
    layer = describe(graph, node)
    if isinstance(layer, Layer) and layer.spatial > 2:
        return f"{layer.name} is a convolution over {layer.spatial} axes"
    return layer


def block_name(graph: Graph, nodes: Iterable[Node]) -> str:
    """Path of the module that contains the convolutions among some nodes; first and last name if it is the model."""
    found = {node: layer for node in nodes if (layer := plain_layer(graph, node)) is not None}
    stored = [node for node, layer in found.items() if not isinstance(layer, str)]
    names = [name_of(graph, node) for node in stored or found]
    if not names:
        return "a block without layers"
    common = names[0].split(".")[:-1]
    for name in names[1:]:
        parts = name.split(".")[:-1]
        while common != parts[: len(common)]:
            common.pop()
    if common:
        return ".".join(common)
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def refusal(name: str, fault: str, cure: str) -> InputError:
    """The error for a block that cannot be rewritten."""
    return InputError(f"{name} cannot be serialised: {fault}. {cure}")


def axes(layer_values: Sequence[int], spatial: int) -> tuple[int, ...]:
    """The entries of a window's pair for the layer's spatial axes: the last one, or both."""
    return tuple(int(value) for value in layer_values[2 - spatial :])
