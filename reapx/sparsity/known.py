"""Values that a network's weights leave no choice about: the same for every image."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..execution import evaluate, last_reads
from ..graph import Graph, operator_name
from ..layers import LAYERS, NORMS
from ..rules import ELEMENTWISE, RULES

Value = Callable[[Node], Any]


def known_values(graph: Graph, tensors: dict[str, Tensor], wanted: Collection[Node]) -> dict[Node, Tensor]:
    """Some nodes' values, NaN wherever they could depend on the images.

    The images are NaN, and what arithmetic does to NaN does the rest. Zero weights need help, since 0 · NaN is NaN:
    layers and norms are run without the NaN, and what reaches them through a weight that is not zero is marked.

    Args:
        tensors: Qualified name -> parameter.
        wanted: Nodes that stand for one tensor.

    Returns:
        Each node's value for two images.
    """
    try:
        return _run(graph, tensors, wanted, torch.float64)
    except (RuntimeError, TypeError):  # a dtype is written down in forward()
        return _run(graph, tensors, wanted, torch.float32)


def _run(graph: Graph, tensors: dict[str, Tensor], wanted: Collection[Node], dtype: torch.dtype) -> dict[Node, Tensor]:
    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    values: dict[Node, Any] = {node: cast(tensors[name]) for node, name in graph.parameters.items()}
    unsure: set[Node] = set()
    """Nodes whose value holds no NaN though it depends on the images: whole numbers, truth values."""
    for node in graph.inputs:
        image = torch.zeros(graph.shape(node), dtype=node.meta["val"].dtype)
        values[node] = torch.full_like(cast(image), torch.nan) if image.is_floating_point() else image
        if not image.is_floating_point():
            unsure.add(node)
    spent = last_reads(graph.nodes, wanted)
    found: dict[Node, Tensor] = {}
    with torch.no_grad():
        for node in graph.nodes:
            value = values[node] = _value(node, values.__getitem__, unsure)
            read = [argument for argument in node.all_input_nodes if argument in unsure or _has_nan(values[argument])]
            if read and any(not item.is_floating_point() for item in _tensors(value)):
                unsure.add(node)
            if node in wanted:
                found[node] = value
            for argument in spent[node]:
                values.pop(argument, None)
    return found


def _value(node: Node, value_of: Value, unsure: set[Node]) -> Any:
    name, first = operator_name(node), node.all_input_nodes[:1]
    if name in LAYERS and not any(argument in unsure for argument in node.all_input_nodes):
        return _layer(node, value_of)
    if name in NORMS and first and isinstance(value_of(first[0]), Tensor):
        return _norm(node, value_of)
    value = evaluate(node, value_of)
    strange = name not in RULES and any(_has_nan(value_of(argument)) for argument in node.all_input_nodes)
    if strange or any(argument in unsure for argument in node.all_input_nodes):
        return _without(value)
    if name in ELEMENTWISE and isinstance(value, Tensor) and value.is_floating_point():
        return _marked(value, [value_of(argument) for argument in node.all_input_nodes])
    return value


def _layer(node: Node, value_of: Value) -> Tensor:
    """A layer's value, NaN where a weight that is not zero reads NaN."""
    source, weight = node.all_input_nodes[:2]
    bias = node.args[2] if len(node.args) > 2 else None
    cleared = value_of(source).nan_to_num(nan=0.0)
    known = evaluate(node, lambda other: cleared if other is source else value_of(other))
    assert isinstance(known, Tensor)
    marks = {source: value_of(source).isnan().to(known.dtype), weight: value_of(weight).ne(0).to(known.dtype)}
    if isinstance(bias, Node):
        marks[bias] = torch.zeros_like(value_of(bias))
    reached = evaluate(node, lambda other: marks[other] if other in marks else value_of(other))
    assert isinstance(reached, Tensor)
    return known.masked_fill_(reached > 0.5, torch.nan)


def _norm(node: Node, value_of: Value) -> Any:
    """A batch norm's value, NaN where it reads NaN, unless its scale is zero there."""
    source = value_of(node.all_input_nodes[0])
    scale = value_of(node.args[1]) if isinstance(node.args[1], Node) else None
    value = evaluate(node, lambda other: source.nan_to_num(nan=0.0) if other is node.args[0] else value_of(other))
    lost = source.isnan()
    if scale is not None:
        lost &= scale.ne(0).reshape(-1, *[1] * (source.dim() - 2))
    for item in _tensors(value)[:1]:
        item.masked_fill_(lost, torch.nan)
    return value


def _marked(value: Tensor, sources: list[Any]) -> Tensor:
    """NaN wherever an operand has it: not all operators hand it on, such as sign."""
    for source in sources:
        if isinstance(source, Tensor) and source.is_floating_point() and _has_nan(source):
            value = torch.where(source.isnan().expand(value.shape), torch.nan, value)
    return value


def _without(value: Any) -> Any:
    """Nothing known of a value, as far as NaN can say so."""
    if isinstance(value, list | tuple):
        return type(value)(_without(item) for item in value)
    return torch.full_like(value, torch.nan) if isinstance(value, Tensor) and value.is_floating_point() else value


def _has_nan(value: Any) -> bool:
    return any(item.is_floating_point() and bool(item.isnan().any()) for item in _tensors(value))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [item for item in value if isinstance(item, Tensor)] if isinstance(value, list | tuple) else []
