"""Which values of a graph depend on which: on the images, or on any node."""

from __future__ import annotations

from collections.abc import Container, Iterable

from torch import Tensor
from torch.fx import Node

_SHAPED = frozenset("zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty".split())
"""Operators that read no more of a tensor than its shape."""


def varying(inputs: Iterable[Node], nodes: Iterable[Node], without: Container[Node] = ()) -> set[Node]:
    """The nodes whose values depend on the images, not only on how many or how large they are.

    Args:
        inputs: The images.
        nodes: The operators, in execution order.
        without: Nodes whose values are taken for constants.
    """
    found = set(inputs)
    for node in nodes:
        constant = node in without or getattr(node.target, "_opname", "") in _SHAPED or not _holds_tensor(node)
        if not constant and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _holds_tensor(node: Node) -> bool:
    value = node.meta.get("val")
    return any(isinstance(item, Tensor) for item in (value if isinstance(value, list | tuple) else [value]))


def ancestors(nodes: Iterable[Node]) -> set[Node]:
    """The given nodes and all nodes that they depend on."""
    found: set[Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found
