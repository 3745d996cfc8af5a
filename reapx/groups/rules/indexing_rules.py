"""Operator rules of operators that stack, repeat, pick or unfold."""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from ...capture.graph import arguments
from .analysis_state import AnalysisState, NodeLayout
from .channel_table import Layout, broadcast
from .shape_rules import axes_of, source

_PICKED = "forward() picks channels by their positions"


def stack_rule(state: AnalysisState, node: Node) -> Layout:
    """Tensors along a new axis: position by position, their channels leave together."""
    given = arguments(node)
    shape = state.graph.shape(node)
    axis = int(given["dim"]) % len(shape)
    operands = [(state.layout(tensor), state.graph.shape(tensor)) for tensor in given["tensors"]]
    reason = "it is stacked with a tensor of fixed size"
    result = broadcast(state.table, operands, (*shape[:axis], *shape[axis + 1 :]), reason)
    return [*result[:axis], None, *result[axis:]]


def unbind_rule(state: AnalysisState, node: Node) -> NodeLayout:
    layout = source(state, node)
    axis = int(arguments(node)["dim"]) % len(layout)
    state.table.freeze_layout(layout, "forward() takes single channels by their positions", [axis])
    return tuple([*layout[:axis], *layout[axis + 1 :]] for _ in node.meta["val"])


def index_rule(state: AnalysisState, node: Node) -> NodeLayout:
    """A tensor indexed by constants along one axis, as tables of positions are; otherwise all is frozen."""
    _, indices = node.args[:2]
    assert isinstance(indices, list | tuple)
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    index = indices[axes[0]]
    if len(axes) > 1 or not isinstance(index, Node) or index in state.graph.varying:
        return state.freeze_inputs(node, "forward() indexes a tensor by values or along several axes")
    layout = source(state, node)
    state.table.freeze_layout(layout, _PICKED, axes)
    return [*layout[: axes[0]], *([None] * len(state.graph.shape(index))), *layout[axes[0] + 1 :]]


def index_select_rule(state: AnalysisState, node: Node) -> Layout:
    layout = source(state, node)
    axis = int(arguments(node)["dim"]) % len(layout)
    state.table.freeze_layout(layout, _PICKED, [axis])
    layout[axis] = None
    return layout


def gather_rule(state: AnalysisState, node: Node) -> Layout:
    """Values at computed positions along one axis; along the others, values and positions run alike."""
    given = arguments(node)
    axis = int(given["dim"]) % len(state.graph.shape(node))
    operands = []
    for tensor in (given["self"], given["index"]):
        layout, shape = list(state.layout(tensor)), list(state.graph.shape(tensor))
        state.table.freeze_layout(layout, _PICKED, [axis])
        layout[axis], shape[axis] = None, 1
        operands.append((layout, tuple(shape)))
    shape = list(state.graph.shape(node))
    shape[axis] = 1
    return broadcast(state.table, operands, tuple(shape), "it is picked by positions of fixed size")


def repeat_rule(state: AnalysisState, node: Node) -> Layout:
    """Whole copies along each axis; new axes come first."""
    layout, counts = source(state, node), arguments(node)["repeats"]
    result: Layout = [None] * (len(counts) - len(layout))
    for channels, count in zip(layout, counts[len(result) :], strict=True):
        result.append(channels if channels is None or count == 1 else np.tile(channels, int(count)))
    return result


def repeat_interleave_rule(state: AnalysisState, node: Node) -> NodeLayout:
    """Each position of an axis so many times in a row."""
    given = arguments(node)
    if not isinstance(given["repeats"], int) or given.get("dim") is None:
        return state.freeze_inputs(node, "forward() repeats positions by computed numbers")
    layout = source(state, node)
    (axis,) = axes_of(given["dim"], len(layout))
    channels = layout[axis]
    layout[axis] = None if channels is None else np.repeat(channels, given["repeats"])
    return layout


def unfold_rule(state: AnalysisState, node: Node) -> Layout:
    """Patches as columns, (images, channels * taps, positions), of images (images, channels, height, width)."""
    layout, taps = source(state, node), int(np.prod(arguments(node)["kernel_size"]))
    channels = layout[-3]
    state.table.freeze_layout(layout, "unfold mixes positions", [-2, -1])
    return [*layout[:-3], None if channels is None else np.repeat(channels, taps), None]


def windows_rule(state: AnalysisState, node: Node) -> Layout:
    """``x.unfold(axis, size, step)``: windows of one axis along a new last one."""
    layout = source(state, node)
    axis = int(arguments(node)["dimension"]) % len(layout)
    state.table.freeze_layout(layout, "unfold combines the channels", [axis])
    layout[axis] = None
    return [*layout, None]


RULES = {
    "stack": stack_rule,
    "unbind": unbind_rule,
    "index": index_rule,
    "index_select": index_select_rule,
    "gather": gather_rule,
    "repeat": repeat_rule,
    "repeat_interleave": repeat_interleave_rule,
    "im2col": unfold_rule,
    "unfold": windows_rule,
}
