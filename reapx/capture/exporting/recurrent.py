"""The input products of recurrent layers as linear layers, so that their inputs can be cut and refitted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node

RECURRENT = (
    torch.ops.aten.lstm.input,
    torch.ops.aten.gru.input,
    torch.ops.aten.rnn_tanh.input,
    torch.ops.aten.rnn_relu.input,
)


def inputs_as_layers(program: ExportedProgram) -> None:
    """Take the product of the input with the first layer's weights out of each recurrent operator, in place.

    An LSTM that reads x and has input weights W and biases b computes the same as ``linear(x, W, b)`` followed by an
    LSTM whose input weights are the identity, and whose input biases are zero. Of two directions, each reads its own
    part of both products.
    """
    stored = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.PARAMETER}
    for node in list(program.graph.nodes):
        if node.op != "call_function" or node.target not in RECURRENT:
            continue
        value, hidden, weights, has_biases, layers, *rest = node.args
        directions = 2 if rest[2] else 1
        each = len(weights) // (layers * directions)
        if not {w.name for w in weights[: each * directions]} <= stored:
            continue
        first = [weights[k * each : (k + 1) * each] for k in range(directions)]
        with program.graph.inserting_before(node):
            products, replaced = _separated(program.graph, node, value, first, has_biases)
        node.args = (products, hidden, [*replaced, *weights[each * directions :]], has_biases, layers, *rest)


def _separated(
    graph: Graph, node: Node, value: Node, first: Sequence[Sequence[Node]], has_biases: bool
) -> tuple[Node, list[Node]]:
    """The products of all directions side by side, and the weights that read them."""

    def add(target: torch._ops.OpOverload, *args: object, **options: object) -> Node:
        made = graph.call_function(target, args, options)  # type: ignore[arg-type]
        given = torch.fx.map_arg((made.args, made.kwargs), lambda x: x.meta["val"])
        made.meta = {**node.meta, "val": target(*given[0], **given[1])}
        return made

    aten = torch.ops.aten
    rows = int(first[0][0].meta["val"].shape[0])
    products = [add(aten.linear.default, value, own[0], own[2] if has_biases else None) for own in first]
    joined = products[0] if len(products) == 1 else add(aten.cat.default, products, -1)
    like = first[0][1]
    with like.meta["val"].fake_mode:
        whole = add(aten.type_as.default, add(aten.eye.default, rows * len(first)), like)
    replaced: list[Node] = []
    for index, (_, recurrent, *others) in enumerate(first):
        part = add(aten.slice.Tensor, whole, 0, index * rows, (index + 1) * rows)
        if has_biases:
            others = [add(aten.new_zeros.default, recurrent, [rows]), *others[1:]]
        replaced += [part, recurrent, *others]
    return joined, replaced
