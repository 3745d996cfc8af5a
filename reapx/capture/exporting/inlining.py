"""Blocks such as ``with torch.autocast(...)`` made part of the graph that they stand in."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from ...errors import CaptureError

_BLOCKS = ("wrap_with_autocast", "wrap_with_set_grad_enabled", "tag_activation_checkpoint")
"""Operators that run one graph under a setting which changes no value but by rounding."""
_ASSERTION = "_assert_tensor_metadata.default"
"""Asserts the dtypes of the capture; parts of the graph are run in others."""


def inline_blocks(program: ExportedProgram) -> None:
    """Replace each operator that runs a graph of its own by the nodes of that graph, in place; drop asserted dtypes.

    An autocast block is then computed in the precision of its inputs, without autocast's rounding.

    Raises:
        CaptureError: an operator chooses among graphs or repeats one, as ``torch.cond`` and ``torch.while_loop`` do.
    """
    module = program.graph_module
    while True:  # blocks may stand in blocks
        found = next((node for node in module.graph.nodes if _graphs_of(module, node)), None)
        if found is None:
            break
        inner = _graphs_of(module, found)
        if len(inner) != 1 or found.target.__name__ not in _BLOCKS:
            raise CaptureError(
                f"forward() uses {getattr(found.target, '__name__', found.target)}, which chooses among graphs or "
                "repeats one: call reapx on the submodules inside of it, or write forward() without it"
            )
        _inline(program, found, inner[0])
    for node in list(module.graph.nodes):  # the dtypes asserted are those under autocast
        if node.op == "call_function" and getattr(node.target, "__name__", "") == _ASSERTION:
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code(lambda node: node.op != "get_attr")
    module.recompile()


def _graphs_of(module: GraphModule, node: Node) -> list[Node]:
    """The arguments of an operator that are graphs."""
    if node.op != "call_function":
        return []
    attributes = [argument for argument in node.all_input_nodes if argument.op == "get_attr"]
    return [a for a in attributes if isinstance(getattr(module, str(a.target), None), GraphModule)]


def _inline(program: ExportedProgram, block: Node, inner: Node) -> None:
    module = program.graph_module
    body = getattr(module, str(inner.target))
    assert isinstance(body, GraphModule)
    for name, child in body.named_children():  # the graphs of blocks inside of this one
        module.add_module(f"{inner.target}_{name}", child)
    operands = iter(block.args[list(block.args).index(inner) + 1 :])
    copies: dict[Node, Any] = {}
    outputs: Any = ()
    with module.graph.inserting_before(block):
        for node in body.graph.nodes:
            if node.op == "placeholder":
                copies[node] = next(operands)
            elif node.op == "output":
                outputs = torch.fx.map_arg(node.args[0], copies.__getitem__)
            else:
                copied = module.graph.node_copy(node, copies.__getitem__)
                if node.op == "get_attr":
                    copied.target = f"{inner.target}_{node.target}"
                copies[node] = copied
    for user in list(block.users):  # getitem, since the result is a tuple
        value = outputs[user.args[1]]
        assert isinstance(value, Node)
        program.graph_signature.replace_all_uses(user.name, value.name)
        user.replace_all_uses_with(value)
        module.graph.erase_node(user)
    module.graph.erase_node(block)
