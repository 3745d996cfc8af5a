"""Multiply-accumulates of operators that are no prunable layers: products of activations, computed weights, Conv3d."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from ..capture.execution import evaluate
from ..capture.exporting.recurrent import RECURRENT
from ..capture.graph import Graph, calling_module, operator_name
from ..capture.layers import LAYERS, name_of
from ..groups.rules.operator_rules import OPERATOR_RULES, SKIPPED

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "matmul", "einsum", "scaled_dot_product_attention", *LAYERS)


def other_macs(graph: Graph, layers: Collection[Node]) -> list[tuple[Node, str, int]]:
    """Multiply-accumulates per image of the operators that are no layers, as torch's FlopCounterMode counts them.

    Their channels are all frozen, so that they cost the same at every width; but for attention, which costs the same
    for each head. What depends on no image is counted once.

    Args:
        layers: Nodes that are counted elsewhere.

    Returns:
        The operator; its module path and name, or a layer's name; and the count, where it is not 0.
    """
    found = []
    for node in graph.nodes:
        name = operator_name(node)
        free = name in SKIPPED or (name in OPERATOR_RULES and name not in _PRODUCTS)
        if node in layers or free:
            continue
        if node.target in RECURRENT:
            count = _recurrent(graph, node)
        else:
            count = _deformable(graph, node) if name.endswith("deform_conv2d") else _counted(node)
        if node in graph.varying:
            count //= graph.batch
        if count:
            found.append((node, _title(graph, node, name), count))
    return found


def _counted(node: Node) -> int:
    """Multiply-accumulates of one operator on the example's shapes, by torch's own count; nothing is computed."""
    try:
        with FlopCounterMode(display=False) as counter:
            evaluate(node, lambda argument: tree_map(_without_data, argument.meta["val"]))
    except Exception:  # an operator that runs on real data only: torch does not count it either
        return 0
    return int(counter.get_total_flops()) // 2


def _without_data(value: Any) -> Any:
    if isinstance(value, Tensor):
        sizes = [int(_without_data(size)) for size in value.shape]
        return torch.empty(sizes, dtype=value.dtype, device="meta")
    symbolic = isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)
    return value.node.hint if symbolic else value


def _deformable(graph: Graph, node: Node) -> int:
    """A deformable convolution does the products of a plain one; where it looks is not counted."""
    weight = node.args[1]
    assert isinstance(weight, Node)
    shape = graph.shape(node)
    return math.prod(graph.shape(weight)) * math.prod(shape) // shape[1]


def _recurrent(graph: Graph, node: Node) -> int:
    """The stored matrices of a recurrent operator at every position; the product with its input is a layer."""
    value, weights = node.args[0], node.args[2]
    assert isinstance(value, Node)
    shapes = [graph.shape(weight) for weight in weights if graph.parameter_of(weight) is not None]  # type: ignore
    return math.prod(graph.shape(value)[:-1]) * sum(math.prod(shape) for shape in shapes if len(shape) == 2)


def _title(graph: Graph, node: Node, name: str) -> str:
    if name in LAYERS:
        return name_of(graph, node)
    path, _ = calling_module(node)
    return f"{path} ({name})" if path else name
