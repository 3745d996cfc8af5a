"""Execution: running a captured graph, whole or in part, with any parameters."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import Node

from .graph import Graph
from .precision import exact

Returned = TypeVar("Returned")


def evaluate(node: Node, value_of: Callable[[Node], Any]) -> object:
    """The value of one operator node, its arguments looked up by ``value_of``."""
    args = torch.fx.map_arg(node.args, value_of)
    kwargs = torch.fx.map_arg(node.kwargs, value_of)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def in_widest_dtype(call: Callable[[torch.dtype], Returned]) -> tuple[Returned, torch.dtype]:
    """What a call gives in float64, or in float32 where forward() has a dtype written down; and which it was."""
    try:
        return call(torch.float64), torch.float64
    except torch.OutOfMemoryError:  # says nothing about the dtype
        raise
    except (RuntimeError, TypeError):
        pass  # outside, the error no longer holds what the first call made
    return call(torch.float32), torch.float32


def last_reads(nodes: Sequence[Node], keep: Container[Node]) -> dict[Node, list[Node]]:
    """Each of some nodes, to be run in this order -> the values, but parameters and inputs, that none reads after it.

    Args:
        nodes: In execution order.
        keep: Values that are needed afterwards.
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
    """Run one batch with the given parameters; values are freed after their last reader.

    Args:
        inputs: The batch, in the order of ``graph.inputs``.
        tensors: Qualified name -> parameter.
        visit: Called after each node with the node, all values that still live, and its own value.
        last: Stop after the node of this order; then nothing is returned.

    Returns:
        The model's outputs.
    """
    values: dict[Node, object] = dict(zip(graph.inputs, inputs, strict=True))
    values.update({node: tensors[name] for node, name in graph.parameters.items()})
    left = {node: len(users) for node, users in graph.users.items()}
    keep = set(graph.outputs)
    with torch.no_grad():
        for node in graph.nodes if last is None else graph.nodes[: last + 1]:
            value = evaluate(node, values.__getitem__)
            if visit is not None:
                visit(node, values, value)
            values[node] = value
            for argument in dict.fromkeys(node.all_input_nodes):
                left[argument] -= 1
                if left[argument] == 0 and argument not in keep:
                    del values[argument]
    return [values[node] for node in graph.outputs] if last is None else []  # type: ignore[misc]
