"""Known values: the parts of a network's activations that are the same for every image.

The analysis runs the network on images of NaN. Arithmetic passes NaN on, so a value that is not NaN does not depend on
the images. Zero weights need care, since 0 · NaN is NaN. A layer is therefore run twice: on its input with NaN set to
zero, and on marks (1 for NaN) with marks for nonzero weights; where the marks arrive, the result becomes NaN.

Example: a linear layer with W = [[1, 0], [0, 0]] and b = [5, 3], then ReLU, reads an input x = [NaN, NaN].

    without NaN   W [0, 0] + b         = [5, 3]
    marks         (W != 0) isnan(x)    = [[1, 0], [0, 0]] [1, 1] = [1, 0]
    result        NaN where marked     = [NaN, 3]
    ReLU                               = [NaN, 3]

So node 1 is 3 for every image. A next layer with weights [0, 2] on these nodes is known as well: its marks are
[0, 1] · [1, 0] = 0, and its value is 2 · 3 = 6. For a zero-padding convolution, 3 would count as unknown, since the
result differs at the border; only zeros count as known there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...capture.execution import evaluate, last_reads
from ...capture.graph import Graph, arguments, operator_name
from ...capture.layers import LAYERS, NORMS
from ...capture.widening import computing_in, in_widest_dtype
from ...groups.rules import attention_rules, indexing_rules, writing_rules
from ...groups.rules.operator_rules import ELEMENTWISE, OPERATOR_RULES, ORDERED, PER_CHANNEL, REDUCTIONS, SKIPPED
from ...groups.rules.shape_rules import axes_of

_FOLLOWED = frozenset(OPERATOR_RULES) - frozenset(
    (*indexing_rules.RULES, *attention_rules.RULES, *writing_rules.RULES, "copy", "fill")
)
"""Operators whose values are followed; others combine or copy positions in ways that are not looked into."""

Value = Callable[[Node], Any]
_ADDING = ("sum", "nansum", "prod", "linalg_vector_norm", "norm", "cumsum", "count_nonzero")
"""Operators over positions that map zeros to zeros; for other constants the result depends on their number."""
_COUNTING = ("logsumexp", "softmax", "_softmax", "log_softmax", "_log_softmax")
"""Operators over positions whose result depends on the number of positions even for zeros."""
_EXTREMA = ("max", "min")
_FILLS = ("zeros", "ones", "empty", "new_zeros", "new_ones", "new_empty")
"""Operators whose values do not depend on the numbers among their arguments, which are sizes."""
_PADS, _JOINS = ("pad", "constant_pad_nd"), ("cat", "concat")
_AVERAGES = ("avg_pool1d", "avg_pool2d", "avg_pool3d")


def known_values(
    graph: Graph, tensors: dict[str, Tensor], wanted: Collection[Node], sized: Collection[Node] = ()
) -> dict[Node, Tensor]:
    """Some nodes' values, NaN wherever they may depend on the images or on the images' number or size.

    Zero padding and sums over positions give other values for larger images. For such operators only zeros in the input
    count as known. Numbers computed from sizes are unknown values, too; only the shape of a tensor may depend on them.

    Args:
        graph: The captured network.
        tensors: Qualified name -> parameter.
        wanted: Nodes whose value is one tensor.
        sized: Nodes with numbers among their arguments, or constants, that depend on the size of the images.

    Returns:
        Node -> its value for a batch of two images.
    """
    if not wanted:
        return {}
    return in_widest_dtype(lambda dtype: _run(graph, tensors, wanted, sized, dtype))[0]


def _run(
    graph: Graph, tensors: dict[str, Tensor], wanted: Collection[Node], sized: Collection[Node], dtype: torch.dtype
) -> dict[Node, Tensor]:
    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    values: dict[Node, Any] = {node: cast(tensors[name]) for node, name in graph.parameters.items()}
    unsure: set[Node] = set()
    """Nodes that depend on the images but whose dtype has no NaN: integers and truth values."""
    for node in values.keys() & set(sized):
        values[node] = _without(values[node])
        unsure.add(node)
    for node in graph.inputs:
        image = torch.zeros(graph.shape(node), dtype=node.meta["val"].dtype, device=graph.device)
        values[node] = torch.full_like(cast(image), torch.nan) if image.is_floating_point() else image
        if not image.is_floating_point():
            unsure.add(node)
    spent = last_reads(graph.nodes, wanted)
    found: dict[Node, Tensor] = {}
    with torch.no_grad(), computing_in(dtype):
        for node in graph.nodes:
            counted = _reads_sizes(node, values.__getitem__, node in sized)
            value = values[node] = _value(graph, node, values.__getitem__, unsure, counted)
            read = [argument for argument in node.all_input_nodes if argument in unsure or _has_nan(values[argument])]
            items = _tensors(value)
            unknown = bool(read) or counted or _are_positions(node)
            if unknown and items and not any(item.is_floating_point() for item in items):
                unsure.add(node)
            if node in wanted:
                found[node] = value
            for argument in spent[node]:
                values.pop(argument, None)
    return found


def _reads_sizes(node: Node, value_of: Value, differs: bool) -> bool:
    """Whether a value, not only its shape, depends on how large the images are or how many.

    Args:
        differs: Whether the operator has other numbers among its arguments at another size.
    """
    name = operator_name(node)
    if name in _FILLS or (name in _FOLLOWED and name not in ELEMENTWISE) or not _tensors(node.meta.get("val")):
        return False
    return differs or any(isinstance(value_of(argument), int | float) for argument in node.all_input_nodes)


def _are_positions(node: Node) -> bool:
    """Whether a value may say where the largest of some equal values is, which no rule fixes."""
    source = node.args[0] if operator_name(node) == "getitem" else node
    return isinstance(source, Node) and operator_name(source) in (*PER_CHANNEL, *REDUCTIONS, *ORDERED, *_EXTREMA)


def _value(graph: Graph, node: Node, value_of: Value, unsure: set[Node], counted: bool) -> Any:
    name, first = operator_name(node), node.all_input_nodes[:1]
    if first and _depends_on_size(node, value_of):
        value_of = _replaced(first[0], _only_zeros(value_of(first[0])), value_of)
    elif first and (name in (*PER_CHANNEL, *REDUCTIONS, *ORDERED) or _is_extremum(node)):
        value_of = _replaced(first[0], _even(value_of(first[0]), _pooled_axes(node, value_of(first[0]))), value_of)
    if name in LAYERS and not any(argument in unsure for argument in node.all_input_nodes):
        return _layer(node, value_of)
    if name in NORMS and first and isinstance(value_of(first[0]), Tensor):
        return _norm(node, value_of)
    value = evaluate(node, value_of)
    if counted:
        zeros = node.all_input_nodes if name == "mul" else first if name == "div" else []
        return _emptied(_without(value), [value_of(argument) for argument in zeros])
    computed = [argument for argument in node.all_input_nodes if argument not in graph.parameters]
    strange = name not in (*_FOLLOWED, *SKIPPED) and computed
    if strange or name in _COUNTING or any(argument in unsure for argument in node.all_input_nodes):
        return _without(value)
    if name in ELEMENTWISE and isinstance(value, Tensor) and value.is_floating_point():
        sources = [value_of(argument) for argument in node.all_input_nodes]
        value = _marked(value, sources)
        return _emptied(value, sources) if name == "mul" else value
    if isinstance(value, Tensor) and value.is_floating_point():
        return _even(value, _grown_axes(node, value.dim()), zeros=name in _JOINS and value.dim() == 3)
    return value


def _is_extremum(node: Node) -> bool:
    return operator_name(node) in _EXTREMA and "other" not in arguments(node)


def _depends_on_size(node: Node, value_of: Value) -> bool:
    """Whether an operator maps a constant to other values at the border, or depends on the number of positions."""
    name = operator_name(node)
    if name in _ADDING:
        return True
    if name in LAYERS:
        return differs_at_border(node, math.prod(value_of(node.all_input_nodes[1]).shape[2:]))
    if name in _AVERAGES:
        given = arguments(node)
        padded, counted = any(given["padding"]), given.get("divisor_override") is None
        return (padded and given["count_include_pad"]) if counted else (padded or given["ceil_mode"])
    return False


def _grown_axes(node: Node, axes: int) -> list[int]:
    """The spatial axes along which an operator adds other values to those that it reads, as padding does."""
    name = operator_name(node)
    given = arguments(node) if name in (*_PADS, *_JOINS) else {}
    if name in _JOINS:
        joined = int(given["dim"]) % axes
        return [joined] if joined > 1 or (joined == 1 and axes == 3) else []
    if name not in _PADS or given.get("mode", "constant") != "constant":
        return []
    widths = given["pad"]
    grown = [axes - 1 - step // 2 for step, width in enumerate(widths) if width]
    return sorted({axis for axis in grown if axes < 4 or axis > 1})  # axis 1 of an image: channels


def _pooled_axes(node: Node, value: Any) -> list[int]:
    """The axes whose positions an operator combines; its windows hold other positions where images are larger."""
    axes = getattr(value, "ndim", 0)
    if operator_name(node) in PER_CHANNEL:
        return list(range(2, axes))
    return sorted(set(axes_of(arguments(node).get("dim"), axes)) - {0})


def _even(value: Any, axes: list[int], *, zeros: bool = False) -> Any:
    """The value with NaN wherever it changes along some axes; with ``zeros``, zeros stay known nevertheless."""
    if not axes or not isinstance(value, Tensor) or not value.is_floating_point() or 0 in value.shape:
        return value
    uneven = value.amin(axes, keepdim=True) != value.amax(axes, keepdim=True)
    return value.masked_fill(uneven & (value != 0) if zeros else uneven, torch.nan)


def _only_zeros(value: Any) -> Any:
    """The value with NaN in place of everything that is not zero."""
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return torch.where(value == 0, value, torch.nan) if floating else value


def _replaced(source: Node, value: Any, value_of: Value) -> Value:
    """``value_of`` with another value for one node."""
    return lambda other: value if other is source else value_of(other)


def _layer(node: Node, value_of: Value) -> Tensor:
    """A layer's value, NaN where a nonzero weight reads NaN; see the example at the top."""
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
    """A batch norm's value, NaN where it reads NaN and its scale is not zero."""
    source = value_of(node.all_input_nodes[0])
    scale = value_of(node.args[1]) if isinstance(node.args[1], Node) else None
    batch = not isinstance(node.args[3], Node)  # uses the statistics of the batch
    value = evaluate(node, lambda other: source.nan_to_num(nan=0.0) if other is node.args[0] else value_of(other))
    lost = source.isnan()
    if batch:
        lost = lost.transpose(0, 1).flatten(1).any(1).reshape(-1, *[1] * (source.dim() - 2)).expand(source.shape)
    if scale is not None:
        lost = lost & scale.ne(0).reshape(-1, *[1] * (source.dim() - 2))
    for item in _tensors(value)[:1]:
        item.masked_fill_(lost, torch.nan)
    return value


def _marked(value: Tensor, sources: list[Any]) -> Tensor:
    """The value with NaN wherever an operand is NaN; some operators, such as sign, do not pass it on."""
    for source in sources:
        if isinstance(source, Tensor) and source.is_floating_point() and _has_nan(source):
            value = torch.where(source.isnan().expand(value.shape), torch.nan, value)
    return value


def _emptied(value: Any, factors: list[Any]) -> Any:
    """A product, zero wherever a factor is zero, even if another is NaN: a dead channel behind a gate."""
    for factor in factors:
        if isinstance(factor, Tensor):
            value = value.masked_fill((factor == 0).expand(value.shape), 0.0)
    return value


def _without(value: Any) -> Any:
    """The value with NaN everywhere, where its dtype has NaN."""
    if isinstance(value, list | tuple):
        return type(value)(_without(item) for item in value)
    return torch.full_like(value, torch.nan) if isinstance(value, Tensor) and value.is_floating_point() else value


def _has_nan(value: Any) -> bool:
    return any(item.is_floating_point() and bool(item.isnan().any()) for item in _tensors(value))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [item for item in value if isinstance(item, Tensor)] if isinstance(value, list | tuple) else []


def differs_at_border(node: Node, taps: int) -> bool:
    """Whether a layer maps a constant input to other values at the border than inside, as zero padding does.

    Args:
        node: The layer's operator.
        taps: Number of kernel positions.
    """
    given, name = arguments(node), operator_name(node)
    padding = given.get("padding", 0)
    if name == "linear":
        return False
    padded = (padding == "same" and taps > 1) if isinstance(padding, str) else any(padding)
    return padded or "transpose" in name or bool(given.get("transposed", False))
