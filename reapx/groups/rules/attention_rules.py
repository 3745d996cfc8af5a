"""Operator rules of attention: scores between positions, and their products with values, head by head.

Heads run along a batch axis of a matrix product. A head of the queries meets the same head of the keys and of the
values, so that all of them leave together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.fx import Node

from ...capture.graph import arguments
from .analysis_state import AnalysisState, NodeLayout
from .channel_table import Layout, broadcast

PRODUCTS = {"matmul": ("self", "other"), "bmm": ("self", "mat2")}
"""Products of two computed matrices -> the names of their operands."""
ATTENTION = "scaled_dot_product_attention"

_SUMS = "a product of matrices sums over these channels"


def matmul_rule(state: AnalysisState, node: Node) -> NodeLayout:
    """A product of two computed matrices for each entry of the batch axes, along which both are joined."""
    left, right = node.args[:2]
    assert isinstance(left, Node) and isinstance(right, Node)
    shapes = state.graph.shape(left), state.graph.shape(right)
    if min(map(len, shapes)) < 3:
        return state.freeze_inputs(node, "a product with a single matrix combines the channels")
    layouts = state.layout(left), state.layout(right)
    state.table.freeze_layout(layouts[0], _SUMS, [-1])
    state.table.freeze_layout(layouts[1], _SUMS, [-2])
    return _with_batch(state, node, layouts, shapes, [layouts[0][-2], layouts[1][-1]])


def attention_rule(state: AnalysisState, node: Node) -> NodeLayout:
    """Scaled dot products of queries and keys, a softmax, and their product with the values.

    Where several heads of the queries share one of the keys and values (``enable_gqa``), they leave with it.
    """
    given = arguments(node)
    tensors = [given[name] for name in ("query", "key", "value")]
    layouts, shapes = [list(state.layout(x)) for x in tensors], [state.graph.shape(x) for x in tensors]
    for layout, summed in zip(layouts, ([-1], [-2, -1], [-2]), strict=True):
        state.table.freeze_layout(layout, _SUMS, summed)
    if given.get("enable_gqa"):
        for index in (1, 2):
            heads, queries = layouts[index][-3], shapes[0][-3]
            layouts[index][-3] = None if heads is None else np.repeat(heads, queries // len(heads))
            shapes[index] = (*shapes[index][:-3], queries, *shapes[index][-2:])
    mask = given.get("attn_mask")
    if isinstance(mask, Node):
        state.table.freeze_layout(state.layout(mask), _SUMS, [-2, -1])
        layouts.append(list(state.layout(mask)))
        shapes.append(state.graph.shape(mask))
    return _with_batch(state, node, layouts, shapes, [layouts[0][-2], layouts[2][-1]])


def _with_batch(
    state: AnalysisState, node: Node, layouts: Sequence[Layout], shapes: Sequence[tuple[int, ...]], matrix: Layout
) -> Layout:
    """The layout of a product: batch axes, along which the operands are joined, and the axes of each matrix.

    The last batch axis behind that of the images is noted as the head axis. No channel of a matrix can leave beside it:
    a later reshape merges the two axes.
    """
    operands = [(layout[:-2], shape[:-2]) for layout, shape in zip(layouts, shapes, strict=True)]
    reason = "a product of matrices meets a model input or a tensor of fixed size"
    result = broadcast(state.table, operands, state.graph.shape(node)[:-2], reason)
    heads = result[-1] if len(result) > 1 else None
    if heads is None:
        return [*result, *matrix]
    state.attention.append((node, heads))
    state.table.freeze_layout(matrix, "all heads read these channels")
    return [*result, None, None]


RULES = {**dict.fromkeys(PRODUCTS, matmul_rule), ATTENTION: attention_rule}
