"""Blocks: a captured residual network as a chain of operators and residual blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.fx import Node

from ..capture.graph import Graph, is_tensor, operator_name
from ..capture.layers import NORMS, Layer
from ..errors import InputError
from .residual_branches import (
    ACTIVATIONS,
    Conv,
    Shortcut,
    branch,
    foldable,
    is_active,
    joined,
    rank,
    read_convolutions,
    read_shortcuts,
)
from .value_flow import ValueFlow, block_name, is_idle, plain_layer, refusal


@dataclass(frozen=True)
class ResidualBlock:
    """A residual block y = relu(f(x) + shortcut(x)).

    Attributes:
        name: Module path that its convolutions have in common.
        convs: Convolutions of f; a ReLU stands between each two.
        shortcut: The linear branch.
    """

    name: str
    convs: list[Conv]
    shortcut: Shortcut


Link = Node | Conv | ResidualBlock
"""One link of the chain: an operator, a convolution with its norm, or a residual block without its last ReLU."""


def find_chain(graph: Graph, *, signed: bool) -> list[Link]:
    """The network as a chain from its input to its output.

    Args:
        graph: The captured network.
        signed: Whether projections are carried with both signs, which allows blocks whose input may be negative.

    Returns:
        Operators, convolutions and blocks in order. Operators that change nothing in eval mode are left out, except for
        dropout.

    Raises:
        InputError: the network is not such a chain, a block cannot be rewritten, or there is no residual block.
    """
    flow = ValueFlow.of(graph)
    chain: list[Link] = []
    node = flow.start
    while node is not flow.end:
        users = flow.users.get(node, [])
        if not users:
            raise InputError("the model's output does not depend on the images")
        if len(users) > 1:
            meeting = flow.meeting(node)
            chain.append(_block(flow, node, meeting, signed))
            node = meeting
        else:
            node = users[0]
            _append(flow, chain, node)
    if not any(isinstance(link, ResidualBlock) for link in chain):
        raise InputError(
            "nothing to serialise: the model has no residual block (no value is read by two operators), so it is a "
            "serial network already; prune it as it is"
        )
    return chain


def _append(flow: ValueFlow, chain: list[Link], node: Node) -> None:
    """Append the next operator to the chain; a norm is joined with the convolution before it."""
    last, layer = chain[-1] if chain else None, plain_layer(flow.graph, node)
    if isinstance(layer, str):
        raise InputError(f"the model cannot be serialised: {layer}")
    if len(flow.sources(node)) != 1:
        raise InputError(
            f"the model cannot be serialised: {node.name} ({node.target}) also reads a value that does not come from "
            "the images; register it as a parameter or buffer, or serialise a part of the model"
        )
    if isinstance(layer, Layer) and layer.kind == "conv":
        chain.append(Conv(layer))
    elif operator_name(node) in NORMS and isinstance(last, Conv) and last.norm is None and foldable(flow.graph, node):
        chain[-1] = Conv(last.layer, node)
    elif operator_name(node) == "dropout" or not is_idle(node):
        chain.append(node)


def _block(flow: ValueFlow, fork: Node, meeting: Node, signed: bool) -> ResidualBlock:
    """The residual block between the value that its branches read and their sum."""
    graph = flow.graph
    name = block_name(graph, flow.between(fork, meeting))
    if operator_name(meeting) != "add":
        raise joined(name, meeting)
    branches = [branch(flow, name, fork, summand) for summand in _summands(graph, name, meeting)]
    if sum(is_active(found) for found in branches) > 1:
        raise refusal(name, "two branches have an activation", "The shortcut must be linear")
    branches.sort(key=lambda found: rank(graph, found))
    convs = read_convolutions(graph, name, branches.pop())
    layer = convs[0].layer
    shortcut = read_shortcuts(graph, name, branches, graph.tensors[layer.weight], layer.spatial)
    block = ResidualBlock(name, convs, shortcut)
    _check_relu(flow, name, meeting)
    _check_positions(graph, block)
    carried = len(convs) > 1 and not (signed and shortcut.kind == "projection")
    if carried and not flow.nonnegative(fork):
        raise refusal(
            name,
            "its input may be negative (a pre-activation network, or no ReLU before the block), and a ReLU would not "
            "carry that",
            "Only blocks that read the output of a ReLU, also behind pooling, can be",
        )
    return block


def _summands(graph: Graph, name: str, total: Node) -> list[Node]:
    """The two or more values that a sum adds; sums of sums are flattened."""
    first, second = total.args[:2]
    if not (isinstance(first, Node) and isinstance(second, Node) and is_tensor(first) and is_tensor(second)):
        raise joined(name, total)
    if total.kwargs.get("alpha", 1) != 1 or not graph.shape(total) == graph.shape(first) == graph.shape(second):
        raise refusal(name, "its sum is weighted or broadcast", "All branches must be added as they are")
    parts = [_summands(graph, name, x) if operator_name(x) == "add" else [x] for x in (first, second)]
    return [*parts[0], *parts[1]]


def _check_relu(flow: ValueFlow, name: str, total: Node) -> None:
    """Refuse a sum that is read by anything else than one ReLU."""
    node = total
    while len(flow.users.get(node, [])) == 1:
        node = flow.users[node][0]
        if not is_idle(node):
            break
    operator = operator_name(node)
    if operator == "relu":
        return
    cure = "Only blocks relu(f(x) + shortcut(x)) can be"
    if operator in ACTIVATIONS:
        cut = ": carried values above 6 would be cut" if operator == "relu6" else ""
        raise refusal(name, f"its sum is followed by {operator}, not ReLU{cut}", cure)
    raise refusal(name, "its sum is not followed by ReLU alone, as in pre-activation networks", cure)


def _check_positions(graph: Graph, block: ResidualBlock) -> None:
    """Refuse a block whose convolutions would carry values to other positions than its shortcut does."""
    name, convs = block.name, block.convs
    stride = tuple(math.prod(steps) for steps in zip(*(conv.stride for conv in convs), strict=True))
    if stride != block.shortcut.stride:
        raise refusal(
            name,
            f"its convolutions have stride {stride} together, its shortcut {block.shortcut.stride}",
            "Both branches must take the same stride",
        )
    wanted = [size - 1 for size in graph.shape(convs[-1].layer.node)[2:]]  # last position of each axis
    for conv in reversed(convs[1:]):
        sizes = graph.shape(conv.layer.input)[2:]
        wanted = [step * last for step, last in zip(conv.stride, wanted, strict=True)]
        if any(last >= size for last, size in zip(wanted, sizes, strict=True)):
            raise refusal(
                name,
                f"the input of {conv.layer.name} is too small {sizes} to carry all that the shortcut takes",
                "Convolutions padded by half their kernels keep the size",
            )
