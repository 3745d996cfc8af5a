"""Products with a stored matrix as linear layers: ``addmm(bias, x, W)``, ``mm(x, W)`` and ``x @ W``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node

_ADDMM, _PRODUCTS = torch.ops.aten.addmm.default, (torch.ops.aten.mm.default, torch.ops.aten.matmul.default)


def products_as_layers(program: ExportedProgram) -> None:
    """Rewrite such products as ``linear(x, Wᵀ, bias)``, in place; GPT-2, for one, stores its weights like that."""
    stored = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.PARAMETER}
    for node in list(program.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _PRODUCTS:
            value, weight, bias = node.args[0], node.args[1], None
        elif node.target is _ADDMM and not node.kwargs and _rank(node.args[0]) == 1:
            bias, value, weight = node.args
        else:
            continue
        if not (isinstance(weight, Node) and weight.name in stored and _rank(weight) == 2 and _rank(value) > 1):
            continue
        _rewrite(program.graph, node, value, weight, bias)


def _rank(argument: object) -> int:
    value = argument.meta.get("val") if isinstance(argument, Node) else None
    return value.dim() if isinstance(value, Tensor) else 0


def _rewrite(graph: Graph, node: Node, value: object, weight: Node, bias: object) -> None:
    with graph.inserting_before(node):
        turned = graph.call_function(torch.ops.aten.t.default, (weight,))
        layer = graph.call_function(torch.ops.aten.linear.default, (value, turned, bias))  # type: ignore[arg-type]
    layer.meta = dict(node.meta)
    turned.meta = {**node.meta, "val": weight.meta["val"].t()}
    node.replace_all_uses_with(layer)
    graph.erase_node(node)
