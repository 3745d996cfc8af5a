"""Operator rules of writes into a part of a tensor, such as ``y[:, :, 1:] = x``, which export makes functional."""

from __future__ import annotations

import torch
from torch.fx import Node

from ...capture.graph import arguments, is_tensor
from .analysis_state import AnalysisState, NodeLayout
from .channel_table import Layout, broadcast
from .shape_rules import even_parts

_WRITES = "forward() writes into a part of a tensor"
_MEETS = "it is written into a model input or a tensor of fixed size, or such a tensor into it"


def slice_scatter_rule(state: AnalysisState, node: Node) -> Layout:
    """``self`` with ``src`` at some positions of one axis; along the others, their channels leave together.

    Along the channel axis, the positions must be one of equal parts, as for a slice: the parts then stay equally long.
    """
    given = arguments(node)
    size, part = state.graph.shape(given["self"]), state.graph.shape(given["src"])
    axis = int(given["dim"]) % len(size)
    own, written = list(state.layout(given["self"])), list(state.layout(given["src"]))
    before, after = own[axis], written[axis]
    own[axis] = written[axis] = None
    shape = tuple(1 if k == axis else n for k, n in enumerate(size))
    flat = tuple(1 if k == axis else n for k, n in enumerate(part))
    result = broadcast(state.table, [(own, shape), (written, flat)], shape, _MEETS)
    start, stop, step = slice(given["start"], given["end"], given["step"]).indices(size[axis])
    length = part[axis]
    if before is not None and after is not None and length == size[axis]:
        state.table.join(before, after)
        result[axis] = before
    elif before is not None and after is not None and step == 1 and size[axis] % length == 0 == start % length:
        even_parts(state, before, size[axis] // length)
        state.table.join(before[start:stop], after)
        result[axis] = before
    else:
        for channels in (before, after):
            if channels is not None:
                state.table.freeze(channels, _WRITES)
    return result


def select_scatter_rule(state: AnalysisState, node: Node) -> Layout:
    """``self`` with ``src`` at one position of an axis."""
    given = arguments(node)
    size = state.graph.shape(given["self"])
    axis = int(given["dim"]) % len(size)
    own, written = list(state.layout(given["self"])), list(state.layout(given["src"]))
    state.table.freeze_layout(own, _WRITES, [axis])
    own[axis] = None
    shape = tuple(1 if k == axis else n for k, n in enumerate(size))
    lifted = ([*written[:axis], None, *written[axis:]], shape)
    return broadcast(state.table, [(own, shape), lifted], shape, _MEETS)


def index_put_rule(state: AnalysisState, node: Node) -> NodeLayout:
    """A number where a mask of the same shape says so, position by position; otherwise all is frozen."""
    given = arguments(node)
    masks, value = given["indices"], given["values"]
    own = state.graph.shape(given["self"])
    mask = masks[0] if len(masks) == 1 else None
    if not (isinstance(mask, Node) and mask.meta["val"].dtype == torch.bool and state.graph.shape(mask) == own):
        return state.freeze_inputs(node, _WRITES)
    if (is_tensor(value) and len(state.graph.shape(value)) > 0) or given.get("accumulate"):
        return state.freeze_inputs(node, _WRITES)
    operands = [(state.layout(tensor), own) for tensor in (given["self"], mask)]
    return broadcast(state.table, operands, own, _MEETS)


RULES = {
    "slice_scatter": slice_scatter_rule,
    "select_scatter": select_scatter_rule,
    "index_put": index_put_rule,
}
