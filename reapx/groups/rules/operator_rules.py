"""Operator rules: how the channels of an operator's inputs become those of its output."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor
from torch.fx import Node

from ...capture.graph import arguments, is_tensor, operator_name
from ...capture.layers import LAYERS, NORMS
from ...errors import InputError
from . import attention_rules, indexing_rules, shape_rules, writing_rules
from .analysis_state import AnalysisState, NodeLayout
from .channel_table import Layout, broadcast
from .shape_rules import axes_of, source

OperatorRule = Callable[[AnalysisState, Node], NodeLayout]
"""A function ``(state, node)`` that returns the layout of the node's value; ``state.layout`` has its inputs'."""

OperatorKind = Literal["elementwise", "per_channel", "norm"]
"""How a user's operator passes channels on; see :func:`register_operator`."""

SKIPPED = frozenset(["sym_size", "_assert_scalar", "sym_constrain_range_for_size"])

ELEMENTWISE = (
    "relu relu6 hardtanh leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid "
    "sigmoid tanh softplus log_sigmoid exp expm1 log log1p sqrt rsqrt abs neg pow clamp "
    "clamp_min clamp_max dropout feature_dropout alpha_dropout clone contiguous detach alias "
    "to _to_copy square sin cos erf reciprocal sign round floor ceil hardshrink softshrink "
    "threshold rrelu nan_to_num lift_fresh_copy add sub rsub mul div maximum minimum where "
    "lerp addcmul addcdiv eq ne lt le gt ge logical_and logical_or logical_not type_as "
    "zeros_like ones_like full_like masked_fill copy fill"
).split()
"""Operators that act on each position by itself, with broadcasting."""
PER_CHANNEL = (
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d "
    "avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "_adaptive_avg_pool2d lp_pool2d adaptive_max_pool1d adaptive_max_pool2d "
    "upsample_nearest1d upsample_nearest2d upsample_linear1d upsample_bilinear2d "
    "upsample_bicubic2d _upsample_nearest_exact2d upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact3d"
).split()
"""Operators that pool or resize the positions of each channel."""
REDUCTIONS = (
    "mean nanmean sum nansum amax amin aminmax argmax argmin var std var_mean std_mean prod logsumexp "
    "linalg_vector_norm norm median nanmedian mode kthvalue count_nonzero any all"
).split()
"""Operators that combine all values along some axes into one, apart from max and min; some give two tensors."""
ORDERED = ("sort", "topk", "argsort", "cummax", "cummin")
"""Operators that order the values along an axis."""
RESHAPES = "reshape view _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as".split()
"""Operators that divide the same values into other axes."""


def _elementwise(state: AnalysisState, node: Node) -> Layout:
    """Operators that act on each position by itself, with broadcasting."""
    tensors = [argument for argument in node.all_input_nodes if is_tensor(argument)]
    operands = [(state.layout(tensor), state.graph.shape(tensor)) for tensor in tensors]
    name = operator_name(node)
    meeting = "it is written into" if name == "copy" else "it meets"
    reason = f"{meeting} a model input or a tensor of fixed size{'' if name == 'copy' else f' in {name}'}"
    result = broadcast(state.table, operands, state.graph.shape(node), reason)
    origins = {state.origins[tensor] for tensor in tensors if tensor in state.graph.varying}
    if name in ("add", "sub", "rsub") and len(origins) > 1:
        for axis, channels in enumerate(result, -len(result)):
            carriers = [layout for layout, _ in operands if len(layout) >= -axis and layout[axis] is not None]
            if channels is not None and len(carriers) > 1:  # others are added to the channels from outside
                state.table.mark_residual_stream(channels)
    return result


def _join_parameters(state: AnalysisState, node: Node) -> Layout:
    """Norms and activations per channel: their parameters run along axis 1 of the input."""
    layout = source(state, node)
    for argument in node.all_input_nodes[1:]:
        vector = state.layout(argument)[0]
        if vector is None:
            continue
        if layout[1] is None:
            state.table.freeze(vector, f"{operator_name(node)} acts on a tensor of fixed size")
        else:
            state.table.join(layout[1], vector)
    return layout


def _each(node: Node, layout: Layout) -> NodeLayout:
    """One layout for each of an operator's tensors, where it gives several."""
    value = node.meta["val"]
    return tuple(list(layout) for _ in value) if isinstance(value, list | tuple) else layout


def _batch_norm(state: AnalysisState, node: Node) -> NodeLayout:
    layout = _join_parameters(state, node)
    several = isinstance(node.meta.get("val"), list | tuple)
    return (layout, [None], [None]) if several else layout


def _group_norm(state: AnalysisState, node: Node) -> Layout:
    """All channels of a norm group leave together, so that the statistics of the other norm groups do not change."""
    layout = _join_parameters(state, node)
    groups, channels = int(arguments(node)["num_groups"]), layout[1]
    if channels is not None:
        rows = channels.reshape(groups, -1)
        if groups == 1:
            state.table.freeze(channels, "a norm takes its statistics over all channels")
        for column in range(1, rows.shape[1]):
            state.table.join(rows[:, 0], rows[:, column])
    return layout


def _layer_norm(state: AnalysisState, node: Node) -> Layout:
    layout = source(state, node)
    first = len(layout) - len(arguments(node)["normalized_shape"])
    reason = "a layer norm takes its statistics over all channels"
    state.table.freeze_layout(layout, reason, range(first, len(layout)))
    for parameter in node.all_input_nodes[1:]:
        state.table.freeze_layout(state.layout(parameter), reason)
    return layout


def _pool(state: AnalysisState, node: Node) -> NodeLayout:
    layout = source(state, node)
    spatial = range(2, len(layout))
    state.table.freeze_layout(layout, f"{operator_name(node)} mixes positions", spatial)
    return _each(node, [*layout[:2], *([None] * len(spatial))])


def _reduction(state: AnalysisState, node: Node) -> NodeLayout:
    layout = source(state, node)
    axes = axes_of(arguments(node).get("dim"), len(layout))
    state.table.freeze_layout(layout, f"{operator_name(node)} combines the channels", axes)
    value = node.meta["val"]
    rank = (value[0] if isinstance(value, list | tuple) else value).dim()
    kept = [None if axis in axes else channels for axis, channels in enumerate(layout)]
    return _each(node, kept if rank == len(layout) else [x for axis, x in enumerate(kept) if axis not in axes])


def _along(state: AnalysisState, node: Node) -> NodeLayout:
    """softmax, sort, roll: positions along the given axes are combined or move; other axes are unchanged."""
    layout, given = source(state, node), arguments(node)
    axes = axes_of(given.get("dim", given.get("dims")), len(layout))
    state.table.freeze_layout(layout, f"{operator_name(node)} combines the channels", axes)
    return _each(node, [None if axis in axes else channels for axis, channels in enumerate(layout)])


def _extremum(state: AnalysisState, node: Node) -> NodeLayout:
    """max and min: of two tensors, or along an axis, with the indices as a second result."""
    return _elementwise(state, node) if "other" in arguments(node) else _reduction(state, node)


OPERATOR_RULES: dict[str, OperatorRule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(PER_CHANNEL, _pool),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(RESHAPES, shape_rules.reshape_rule),
    **dict.fromkeys(NORMS, _batch_norm),
    **dict.fromkeys(["prelu", "instance_norm"], _join_parameters),
    **dict.fromkeys(["layer_norm", "rms_norm"], _layer_norm),
    **dict.fromkeys(["softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "roll"], _along),
    **dict.fromkeys(ORDERED, _along),
    **dict.fromkeys(["max", "min"], _extremum),
    **dict.fromkeys(["expand", "expand_as"], shape_rules.expand_rule),
    "movedim": shape_rules.movedim_rule,
    **dict.fromkeys(["transpose", "swapaxes", "t", "mT"], shape_rules.transpose_rule),
    **dict.fromkeys(["cat", "concat"], shape_rules.cat_rule),
    **dict.fromkeys(["chunk", "split", "split_with_sizes"], shape_rules.chunk_rule),
    **dict.fromkeys(["pad", "constant_pad_nd"], shape_rules.pad_rule),
    **dict.fromkeys(["pixel_shuffle", "pixel_unshuffle"], shape_rules.pixel_shuffle_rule),
    "group_norm": _group_norm,
    "permute": shape_rules.permute_rule,
    "slice": shape_rules.slice_rule,
    "select": shape_rules.select_rule,
    "flip": shape_rules.flip_rule,
    "getitem": shape_rules.getitem_rule,
    **indexing_rules.RULES,
    **writing_rules.RULES,
    **attention_rules.RULES,
    "glu": shape_rules.glu_rule,
    "channel_shuffle": shape_rules.channel_shuffle_rule,
}

_KINDS: dict[OperatorKind, OperatorRule] = {
    "elementwise": _elementwise,
    "per_channel": _pool,
    "norm": _batch_norm,
}
_REGISTERED: dict[str, OperatorRule] = {}


def register_operator(op: object, rule: OperatorKind | OperatorRule) -> None:
    """Register how an unknown operator passes channels on; without an operator rule, its channels are frozen.

    The rule holds in this process until another one is registered for the same operator. A wrong rule cannot give a
    wrong network: every pruned network is run and proved on calibration images.

    Args:
        op: The operator that ``torch.library.custom_op`` returned, ``torch.ops.mylib.scale``, or ``"mylib::scale"``. It
            needs a fake implementation (``register_fake``) that takes any number of channels.
        rule: ``"elementwise"`` for operators on each position by itself, with broadcasting; ``"per_channel"`` for
            operators on each channel (axis 1) by itself, whose positions may be combined, as pooling does; ``"norm"``
            for operators such as a batch norm, with channels along axis 1 and a value for each channel in all further
            tensors. Or a function ``(state, node)`` that returns a list with the channels along each axis of the
            output, or None for an axis from which nothing can be removed. ``state.layout(input)`` is this list for each
            of ``node.all_input_nodes``. The function may call ``state.table.join(channels, others)`` for channels that
            must leave together, and ``state.table.freeze(channels, reason)``.

    Raises:
        InputError: ``op`` is not an operator, reapx has its own rule for it, or ``rule`` is not one of the above.
    """
    name = _qualified_name(op)
    if name in OPERATOR_RULES or name in LAYERS or name in SKIPPED:
        raise InputError(f"op={name!r}: reapx knows this operator; only others can be registered")
    kinds = get_args(OperatorKind)
    if not callable(rule) and rule not in kinds:
        raise InputError(f"rule={rule!r}: choose one of {', '.join(kinds)}, or give a function (state, node) -> layout")
    _REGISTERED[name] = _own_rule(name, rule) if callable(rule) else _KINDS[rule]


def rule_of(name: str) -> OperatorRule | None:
    """The operator rule for a name as ``operator_name`` returns it; None where there is none."""
    return OPERATOR_RULES.get(name) or _REGISTERED.get(name)


def _qualified_name(op: object) -> str:
    """The name of an operator as ``operator_name`` returns it in a graph."""
    overload: Any = getattr(op, "_opoverload", op)  # of a torch.library.CustomOpDef
    schema = getattr(overload, "_schema", None)
    given = str(overload if schema is None and isinstance(overload, str) else getattr(schema, "name", ""))
    if schema is None and not isinstance(overload, str):
        given = str(getattr(overload, "_qualified_op_name", ""))  # of torch.ops.mylib.scale
    if not re.fullmatch(r"\w+::\w+", given):
        raise InputError(
            f"op={op!r}: give what torch.library.custom_op returned, torch.ops.mylib.name or 'mylib::name'"
        )
    return given.removeprefix("aten::")


def _own_rule(name: str, rule: OperatorRule) -> OperatorRule:
    """A user's rule, whose result is checked on each use."""

    def checked(state: AnalysisState, node: Node) -> NodeLayout:
        found = rule(state, node)
        value = node.meta["val"]
        layouts: Any = [found] if isinstance(value, Tensor) else found
        for layout, own in zip(layouts, [value] if isinstance(value, Tensor) else value, strict=True):
            fits = isinstance(layout, list) and len(layout) == own.dim()
            if not fits or any(c is not None and len(c) != s for c, s in zip(layout, own.shape, strict=True)):
                raise InputError(
                    f"the rule of {name} returned {layout!r} for a value of shape {tuple(own.shape)}: return a list "
                    "with an entry for each axis, the channels along it or None"
                )
        return found

    return checked
