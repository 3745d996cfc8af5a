"""Operator rules of operators that move, cut, join or reshape axes."""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from ...capture.graph import arguments, operator_name
from .analysis_state import AnalysisState, NodeLayout
from .channel_table import Channels, Layout, broadcast, reshape


def source(state: AnalysisState, node: Node) -> Layout:
    """A copy of the layout of an operator's first input."""
    return list(state.layout(node.all_input_nodes[0]))


def expand_rule(state: AnalysisState, node: Node) -> Layout:
    old = state.graph.shape(node.all_input_nodes[0])
    return broadcast(state.table, [(source(state, node), old)], state.graph.shape(node), "")


def movedim_rule(state: AnalysisState, node: Node) -> Layout:
    layout, given = source(state, node), arguments(node)
    sources, targets = (axes_of(given[key], len(layout)) for key in ("source", "destination"))
    rest = iter(axis for axis in range(len(layout)) if axis not in sources)
    moved = dict(zip(targets, sources, strict=True))
    return [layout[moved[axis] if axis in moved else next(rest)] for axis in range(len(layout))]


def axes_of(value: object, rank: int) -> list[int]:
    """An operator's axes argument as non-negative axes; all axes where the argument is missing."""
    if isinstance(value, int):
        return [value % rank]
    return [axis % rank for axis in value] if isinstance(value, list | tuple) else list(range(rank))


def reshape_rule(state: AnalysisState, node: Node) -> Layout:
    old, new = state.graph.shape(node.all_input_nodes[0]), state.graph.shape(node)
    return reshape(state.table, source(state, node), old, new, state.head_axes.get(node, ()))


def permute_rule(state: AnalysisState, node: Node) -> Layout:
    layout = source(state, node)
    return [layout[axis] for axis in arguments(node)["dims"]]


def transpose_rule(state: AnalysisState, node: Node) -> Layout:
    layout, given = source(state, node), arguments(node)
    first, second = given.get("dim0", given.get("axis0", -2)), given.get("dim1", given.get("axis1", -1))
    if len(layout) > 1:
        layout[first], layout[second] = layout[second], layout[first]
    return layout


def cat_rule(state: AnalysisState, node: Node) -> Layout:
    given = arguments(node)
    tensors = [tensor for tensor in given["tensors"] if state.graph.shape(tensor) != (0,)]
    layouts = [state.layout(tensor) for tensor in tensors]
    shapes = [state.graph.shape(tensor) for tensor in tensors]
    axis = int(given["dim"]) % len(shapes[0])
    others = [
        ([None if k == axis else channels for k, channels in enumerate(layout)], shape)
        for layout, shape in zip(layouts, shapes, strict=True)
    ]
    reason = "it is concatenated with a tensor of fixed size"
    result = broadcast(state.table, others, state.graph.shape(node), reason)
    parts = [layout[axis] for layout in layouts]
    if any(part is not None for part in parts):
        fixed = "these channels are fixed"
        pairs = zip(parts, shapes, strict=True)
        result[axis] = np.concatenate([_fixed(state, s[axis], fixed) if p is None else p for p, s in pairs])
    return result


def _fixed(state: AnalysisState, count: int, reason: str) -> Channels:
    channels = state.table.fresh(count)
    state.table.freeze(channels, reason)
    return channels


def pad_rule(state: AnalysisState, node: Node) -> Layout:
    layout, given = source(state, node), arguments(node)
    widths = list(given["pad"])
    for step in range(len(widths) // 2):
        axis, before, after = len(layout) - 1 - step, widths[2 * step], widths[2 * step + 1]
        channels = layout[axis]
        if channels is None or (before == 0 and after == 0):
            continue
        if before < 0 or after < 0 or given.get("mode", "constant") != "constant":
            state.table.freeze(channels, "pad crops or mirrors the channel axis")
            layout[axis] = None
            continue
        reason = "forward() pads the channel axis by a fixed number of channels"
        ends = _fixed(state, before, reason), _fixed(state, after, reason)
        layout[axis] = np.concatenate([ends[0], channels, ends[1]])
    return layout


def even_parts(state: AnalysisState, channels: Channels, parts: int) -> None:
    """Join the channels of equal parts position by position, so that the parts stay equally long."""
    rows = channels.reshape(parts, -1)
    for row in rows[1:]:
        state.table.join(rows[0], row)


def slice_rule(state: AnalysisState, node: Node) -> Layout:
    layout, given = source(state, node), arguments(node)
    size, part = state.graph.shape(node.all_input_nodes[0]), state.graph.shape(node)
    axis = int(given["dim"]) % len(layout)
    channels = layout[axis]
    if channels is None or part[axis] == size[axis]:
        return layout
    start, stop, step = slice(given["start"], given["end"], given["step"]).indices(size[axis])
    if step != 1 or part[axis] == 0 or size[axis] % part[axis] or start % part[axis]:
        state.table.freeze(channels, "forward() slices the channel axis at a fixed position")
    else:
        even_parts(state, channels, size[axis] // part[axis])
    layout[axis] = channels[start:stop:step]
    return layout


def select_rule(state: AnalysisState, node: Node) -> Layout:
    layout = source(state, node)
    axis = int(arguments(node)["dim"]) % len(layout)
    state.table.freeze_layout(layout, "forward() picks one channel by its position", [axis])
    return layout[:axis] + layout[axis + 1 :]


def chunk_rule(state: AnalysisState, node: Node) -> NodeLayout:
    layout = source(state, node)
    axis = int(arguments(node)["dim"]) % len(layout)
    channels, sizes = layout[axis], [int(value.shape[axis]) for value in node.meta["val"]]
    if channels is None:
        return tuple(list(layout) for _ in sizes)
    if len(set(sizes)) == 1:
        even_parts(state, channels, len(sizes))
    else:
        reason = f"{operator_name(node)} cuts the channels into unequal parts"
        state.table.freeze(channels, reason)
    parts = np.split(channels, np.cumsum(sizes)[:-1])
    return tuple([*layout[:axis], part, *layout[axis + 1 :]] for part in parts)


def getitem_rule(state: AnalysisState, node: Node) -> Layout:
    source, index = node.args
    assert isinstance(source, Node) and isinstance(index, int)
    return state.layout_at(source, index)


def flip_rule(state: AnalysisState, node: Node) -> Layout:
    """The order of positions turned round; of channels, too: those that stay come in the turned order as well."""
    layout = source(state, node)
    for axis in axes_of(arguments(node)["dims"], len(layout)):
        channels = layout[axis]
        layout[axis] = None if channels is None else channels[::-1].copy()
    return layout


def glu_rule(state: AnalysisState, node: Node) -> Layout:
    layout = source(state, node)
    axis = int(arguments(node)["dim"]) % len(layout)
    channels = layout[axis]
    if channels is not None:
        even_parts(state, channels, 2)
        layout[axis] = channels[: len(channels) // 2]
    return layout


def pixel_shuffle_rule(state: AnalysisState, node: Node) -> Layout:
    """pixel_shuffle turns factor² neighbouring channels into one; pixel_unshuffle turns one into factor²."""
    layout, given = source(state, node), arguments(node)
    factor, axis = int(given.get("upscale_factor") or given["downscale_factor"]) ** 2, len(layout) - 3
    channels = layout[axis]
    if channels is None:
        return layout
    if operator_name(node) == "pixel_unshuffle":
        layout[axis] = np.repeat(channels, factor)
    else:
        rows = channels.reshape(-1, factor)
        for column in range(1, factor):
            state.table.join(rows[:, 0], rows[:, column])
        layout[axis] = rows[:, 0].copy()
    return layout


def channel_shuffle_rule(state: AnalysisState, node: Node) -> Layout:
    layout, groups = source(state, node), int(arguments(node)["groups"])
    if layout[1] is not None:
        even_parts(state, layout[1], groups)
        layout[1] = layout[1].reshape(groups, -1).T.reshape(-1).copy()
    return layout
