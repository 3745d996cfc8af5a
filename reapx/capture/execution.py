"""Execution: run a captured graph, as a whole or in part, with any parameters."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..calibration.threads import TURNS
from .graph import Graph
from .precision import exact


def evaluate(node: Node, value_of: Callable[[Node], Any]) -> object:
    """The value of one operator node; ``value_of`` gives the values of its arguments."""
    args = torch.fx.map_arg(node.args, value_of)
    kwargs = torch.fx.map_arg(node.kwargs, value_of)
    with TURNS.together():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def last_reads(nodes: Sequence[Node], keep: Container[Node]) -> dict[Node, list[Node]]:
    """Node -> the values that no later node reads, and which can be freed after it; never parameters or inputs.

    Args:
        nodes: Nodes to run, in execution order.
        keep: Nodes whose values are needed afterwards.
    """
    last = {argument: node for node in nodes for argument in (node, *node.all_input_nodes)}
    spent: dict[Node, list[Node]] = {node: [] for node in nodes}
    for argument, node in last.items():
        if argument.op != "placeholder" and argument not in keep:
            spent[node].append(argument)
    return spent


@exact()
def run(
    graph: Graph,
    inputs: Iterable[Tensor],
    tensors: Mapping[str, Tensor],
    visit: Callable[[Node, Mapping[Node, object], object], None] | None = None,
    last: int | None = None,
) -> list[Tensor]:
    """Run one batch with the given parameters; each value is freed after the last node that reads it.

    Args:
        graph: The captured network.
        inputs: The batch, in the order of ``graph.inputs``.
        tensors: Qualified name -> parameter.
        visit: Called after each node with the node, all values that are still alive, and the node's own value.
        last: Index in ``graph.nodes`` of the last node to run; the result is then empty. None to run all nodes.

    Returns:
        The model's outputs.
    """
    values: dict[Node, object] = dict(zip(graph.inputs, inputs, strict=True))
    values.update({node: tensors[name] for node, name in graph.parameters.items()})
    remaining = {node: len(users) for node, users in graph.users.items()}
    keep = set(graph.outputs)
    with torch.no_grad():
        for node in graph.nodes if last is None else graph.nodes[: last + 1]:
            value = evaluate(node, values.__getitem__)
            if visit is not None:
                visit(node, values, value)
            values[node] = value
            for argument in dict.fromkeys(node.all_input_nodes):
                remaining[argument] -= 1
                if remaining[argument] == 0 and argument not in keep:
                    del values[argument]
    return [values[node] for node in graph.outputs] if last is None else []  # type: ignore[misc]
