"""Operator rules: how the channels of an operator's inputs become those of its output."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch.fx import Node

from .channels import Channels, Layout, broadcast, reshape
from .graph import arguments, is_tensor, operator_name
from .walk import Result, Walk

Rule = Callable[[Walk, Node], Result]

SKIPPED = frozenset(["sym_size", "_assert_scalar", "sym_constrain_range_for_size", "_assert_tensor_metadata"])

_ELEMENTWISE = (
    "relu relu6 hardtanh leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid "
    "sigmoid tanh softplus log_sigmoid exp expm1 log log1p sqrt rsqrt abs neg pow clamp "
    "clamp_min clamp_max dropout feature_dropout alpha_dropout clone contiguous detach alias "
    "to _to_copy square sin cos erf reciprocal sign round floor ceil hardshrink softshrink "
    "threshold rrelu nan_to_num lift_fresh_copy add sub rsub mul div maximum minimum where "
    "lerp addcmul addcdiv eq ne lt le gt ge logical_and logical_or logical_not type_as "
    "zeros_like ones_like full_like expand"
).split()
_PER_CHANNEL = (
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d "
    "avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "_adaptive_avg_pool2d lp_pool2d adaptive_max_pool1d adaptive_max_pool2d "
    "upsample_nearest1d upsample_nearest2d upsample_linear1d upsample_bilinear2d "
    "upsample_bicubic2d _upsample_nearest_exact2d"
).split()
_REDUCTIONS = ("mean sum amax amin var std prod logsumexp linalg_vector_norm").split()
_RESHAPES = ("reshape view _unsafe_view flatten unflatten squeeze unsqueeze").split()


def _elementwise(walk: Walk, node: Node) -> Layout:
    """Rule of operators that act on positions one by one, with broadcasting."""
    tensors = [argument for argument in node.all_input_nodes if is_tensor(argument)]
    operands = [(walk.layout(tensor), walk.graph.shape(tensor)) for tensor in tensors]
    name = operator_name(node)
    reason = f"it meets a model input or a tensor of fixed size in {name}"
    result = broadcast(walk.table, operands, walk.graph.shape(node), reason)
    activations = [t for t in tensors if walk.graph.parameter_of(t) is None]
    if name in ("add", "sub", "rsub") and len(activations) > 1:
        for channels in result:
            if channels is not None:
                walk.table.mark_stream(channels)
    return result


def _source(walk: Walk, node: Node) -> Layout:
    return list(walk.layout(node.all_input_nodes[0]))


def _join_parameters(walk: Walk, node: Node) -> Layout:
    """A per-channel norm or activation: its vectors run along axis 1 of its input."""
    layout = _source(walk, node)
    for argument in node.all_input_nodes[1:]:
        vector = walk.layout(argument)[0]
        if vector is None:
            continue
        if layout[1] is None:
            walk.table.freeze(vector, f"{operator_name(node)} acts on a tensor of fixed size")
        else:
            walk.table.join(layout[1], vector)
    return layout


def _batch_norm(walk: Walk, node: Node) -> Result:
    layout = _join_parameters(walk, node)
    several = isinstance(node.meta.get("val"), list | tuple)
    return (layout, [None], [None]) if several else layout


def _group_norm(walk: Walk, node: Node) -> Layout:
    """A norm group leaves as a whole: the statistics of the others do not change."""
    layout = _join_parameters(walk, node)
    groups, channels = int(arguments(node)["num_groups"]), layout[1]
    if channels is not None:
        rows = channels.reshape(groups, -1)
        if groups == 1:
            walk.table.freeze(channels, "a norm takes its statistics over all channels")
        for column in range(1, rows.shape[1]):
            walk.table.join(rows[:, 0], rows[:, column])
    return layout


def _layer_norm(walk: Walk, node: Node) -> Layout:
    layout = _source(walk, node)
    first = len(layout) - len(arguments(node)["normalized_shape"])
    reason = "a layer norm takes its statistics over all channels"
    walk.table.freeze_layout(layout, reason, range(first, len(layout)))
    for parameter in node.all_input_nodes[1:]:
        walk.table.freeze_layout(walk.layout(parameter), reason)
    return layout


def _pool(walk: Walk, node: Node) -> Result:
    layout = _source(walk, node)
    spatial = range(2, len(layout))
    walk.table.freeze_layout(layout, f"{operator_name(node)} mixes positions", spatial)
    result: Layout = [*layout[:2], *([None] * len(spatial))]
    several = isinstance(node.meta.get("val"), list | tuple)
    return (result, list(result)) if several else result


def _axes(value: object, rank: int) -> list[int]:
    if isinstance(value, int):
        return [value % rank]
    return [axis % rank for axis in value] if isinstance(value, list | tuple) else list(range(rank))


def _reduction(walk: Walk, node: Node) -> Layout:
    layout = _source(walk, node)
    axes = _axes(arguments(node).get("dim"), len(layout))
    walk.table.freeze_layout(layout, f"{operator_name(node)} combines the channels", axes)
    if len(walk.graph.shape(node)) == len(layout):
        return [None if axis in axes else channels for axis, channels in enumerate(layout)]
    return [channels for axis, channels in enumerate(layout) if axis not in axes]


def _softmax(walk: Walk, node: Node) -> Layout:
    layout = _source(walk, node)
    axes = _axes(arguments(node)["dim"], len(layout))
    walk.table.freeze_layout(layout, "softmax combines the channels", axes)
    return layout


def _reshape(walk: Walk, node: Node) -> Layout:
    old, new = walk.graph.shape(node.all_input_nodes[0]), walk.graph.shape(node)
    return reshape(walk.table, _source(walk, node), old, new)


def _permute(walk: Walk, node: Node) -> Layout:
    layout = _source(walk, node)
    return [layout[axis] for axis in arguments(node)["dims"]]


def _transpose(walk: Walk, node: Node) -> Layout:
    layout, given = _source(walk, node), arguments(node)
    first, second = given.get("dim0", 0), given.get("dim1", -1)
    if len(layout) > 1:
        layout[first], layout[second] = layout[second], layout[first]
    return layout


def _cat(walk: Walk, node: Node) -> Layout:
    given = arguments(node)
    tensors = [tensor for tensor in given["tensors"] if walk.graph.shape(tensor) != (0,)]
    layouts = [walk.layout(tensor) for tensor in tensors]
    shapes = [walk.graph.shape(tensor) for tensor in tensors]
    axis = int(given["dim"]) % len(shapes[0])
    others = [
        ([None if k == axis else channels for k, channels in enumerate(layout)], shape)
        for layout, shape in zip(layouts, shapes, strict=True)
    ]
    reason = "it is concatenated with a tensor of fixed size"
    result = broadcast(walk.table, others, walk.graph.shape(node), reason)
    parts = [layout[axis] for layout in layouts]
    if any(part is not None for part in parts):
        fixed = "these channels are fixed"
        pairs = zip(parts, shapes, strict=True)
        result[axis] = np.concatenate([_fixed(walk, s[axis], fixed) if p is None else p for p, s in pairs])
    return result


def _fixed(walk: Walk, count: int, reason: str) -> Channels:
    channels = walk.table.fresh(count)
    walk.table.freeze(channels, reason)
    return channels


def _pad(walk: Walk, node: Node) -> Layout:
    layout, given = _source(walk, node), arguments(node)
    widths = list(given["pad"])
    for step in range(len(widths) // 2):
        axis, before, after = len(layout) - 1 - step, widths[2 * step], widths[2 * step + 1]
        channels = layout[axis]
        if channels is None or (before == 0 and after == 0):
            continue
        if before < 0 or after < 0 or given.get("mode", "constant") != "constant":
            walk.table.freeze(channels, "pad crops or mirrors the channel axis")
            layout[axis] = None
            continue
        reason = "forward() pads the channel axis by a fixed number of channels"
        ends = _fixed(walk, before, reason), _fixed(walk, after, reason)
        layout[axis] = np.concatenate([ends[0], channels, ends[1]])
    return layout


def _even_parts(walk: Walk, channels: Channels, parts: int) -> None:
    """Equal parts lose the same channels, so that they stay equal."""
    rows = channels.reshape(parts, -1)
    for row in rows[1:]:
        walk.table.join(rows[0], row)


def _slice(walk: Walk, node: Node) -> Layout:
    layout, given = _source(walk, node), arguments(node)
    size, part = walk.graph.shape(node.all_input_nodes[0]), walk.graph.shape(node)
    axis = int(given["dim"]) % len(layout)
    channels = layout[axis]
    if channels is None or part[axis] == size[axis]:
        return layout
    start, stop, step = slice(given["start"], given["end"], given["step"]).indices(size[axis])
    if step != 1 or part[axis] == 0 or size[axis] % part[axis] or start % part[axis]:
        walk.table.freeze(channels, "forward() slices the channel axis at a fixed position")
    else:
        _even_parts(walk, channels, size[axis] // part[axis])
    layout[axis] = channels[start:stop:step]
    return layout


def _select(walk: Walk, node: Node) -> Layout:
    layout = _source(walk, node)
    axis = int(arguments(node)["dim"]) % len(layout)
    walk.table.freeze_layout(layout, "forward() picks one channel by its position", [axis])
    return layout[:axis] + layout[axis + 1 :]


def _chunk(walk: Walk, node: Node) -> Result:
    layout = _source(walk, node)
    axis = int(arguments(node)["dim"]) % len(layout)
    channels, sizes = layout[axis], [int(value.shape[axis]) for value in node.meta["val"]]
    if channels is None:
        return tuple(list(layout) for _ in sizes)
    if len(set(sizes)) == 1:
        _even_parts(walk, channels, len(sizes))
    else:
        reason = f"{operator_name(node)} cuts the channels into unequal parts"
        walk.table.freeze(channels, reason)
    parts = np.split(channels, np.cumsum(sizes)[:-1])
    return tuple([*layout[:axis], part, *layout[axis + 1 :]] for part in parts)


def _getitem(walk: Walk, node: Node) -> Layout:
    source, index = node.args
    assert isinstance(source, Node) and isinstance(index, int)
    return walk.part(source, index)


def _glu(walk: Walk, node: Node) -> Layout:
    layout = _source(walk, node)
    axis = int(arguments(node)["dim"]) % len(layout)
    channels = layout[axis]
    if channels is not None:
        _even_parts(walk, channels, 2)
        layout[axis] = channels[: len(channels) // 2]
    return layout


def _pixel_shuffle(walk: Walk, node: Node) -> Layout:
    """factor² neighbouring channels become one, or the other way round."""
    layout, given = _source(walk, node), arguments(node)
    factor, axis = int(given.get("upscale_factor") or given["downscale_factor"]) ** 2, len(layout) - 3
    channels = layout[axis]
    if channels is None:
        return layout
    if operator_name(node) == "pixel_unshuffle":
        layout[axis] = np.repeat(channels, factor)
    else:
        rows = channels.reshape(-1, factor)
        for column in range(1, factor):
            walk.table.join(rows[:, 0], rows[:, column])
        layout[axis] = rows[:, 0].copy()
    return layout


def _channel_shuffle(walk: Walk, node: Node) -> Layout:
    layout, groups = _source(walk, node), int(arguments(node)["groups"])
    if layout[1] is not None:
        _even_parts(walk, layout[1], groups)
        layout[1] = layout[1].reshape(groups, -1).T.reshape(-1).copy()
    return layout


RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_PER_CHANNEL, _pool),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(["batch_norm", "_native_batch_norm_legit_no_training"], _batch_norm),
    **dict.fromkeys(["prelu", "instance_norm"], _join_parameters),
    **dict.fromkeys(["layer_norm", "rms_norm"], _layer_norm),
    **dict.fromkeys(["softmax", "_softmax", "log_softmax", "_log_softmax"], _softmax),
    **dict.fromkeys(["transpose", "t"], _transpose),
    **dict.fromkeys(["cat", "concat"], _cat),
    **dict.fromkeys(["chunk", "split", "split_with_sizes"], _chunk),
    **dict.fromkeys(["pad", "constant_pad_nd"], _pad),
    **dict.fromkeys(["pixel_shuffle", "pixel_unshuffle"], _pixel_shuffle),
    "group_norm": _group_norm,
    "permute": _permute,
    "slice": _slice,
    "select": _select,
    "getitem": _getitem,
    "glu": _glu,
    "channel_shuffle": _channel_shuffle,
}
