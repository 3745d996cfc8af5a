"""Operators outside of blocks as modules, and the names of the serial network's modules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from ..capture.graph import Graph, arguments, calling_module, is_dynamic, operator_name
from ..capture.layers import NORMS, Layer, name_of
from ..errors import InputError
from .value_flow import DROPOUTS, is_idle, plain_layer

_POOLS: dict[str, type[nn.Module]] = {
    "max_pool1d": nn.MaxPool1d,
    "max_pool2d": nn.MaxPool2d,
    "avg_pool1d": nn.AvgPool1d,
    "avg_pool2d": nn.AvgPool2d,
    "adaptive_avg_pool1d": nn.AdaptiveAvgPool1d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
}
_NORMS: dict[int, type[nn.BatchNorm1d] | type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
_INPUT = "<input>"


class Operator(nn.Module):
    """A module that calls an ATen operator with constant arguments.

    Args:
        name: Name and overload, such as ``"log_softmax.int"``.
        args: Positional arguments, with ``"<input>"`` in place of the input.
        kwargs: Keyword arguments, with ``"<input>"`` in place of the input.
    """

    def __init__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.args, self.kwargs = name, args, kwargs

    def forward(self, x: Tensor) -> Tensor:
        """The operator's value for an input."""
        packet, _, overload = self.name.partition(".")
        operator = getattr(getattr(torch.ops.aten, packet), overload)
        args, kwargs = torch.utils._pytree.tree_map(
            lambda value: x if value == _INPUT else value, (self.args, self.kwargs)
        )
        value: Tensor = operator(*args, **kwargs)
        return value

    def extra_repr(self) -> str:
        """The operator's call as text."""
        given = [str(value) for value in self.args] + [f"{key}={value}" for key, value in self.kwargs.items()]
        return f"{self.name}({', '.join(given)})"


def modules_of(graph: Graph, node: Node) -> list[nn.Module]:
    """Modules that together compute an operator outside of blocks.

    Raises:
        InputError: the operator reads other tensors besides its input, depends on sizes of other values, changes values
            at inference as dropout with training=True does, or gives each image no fixed shape.
    """
    operator, layer = operator_name(node), plain_layer(graph, node)
    if isinstance(layer, Layer) and layer.kind == "linear":
        return [_linear(graph, layer)]
    if operator == "relu":
        return [nn.ReLU()]
    if operator in DROPOUTS:
        if not is_idle(node):
            raise _unknown(node, "drops values at inference, too (training=True)")
        return [nn.Dropout(arguments(node)["p"])]
    if operator in NORMS:
        return [_norm(graph, node)]
    if operator in _POOLS:
        return [_pool(node, operator)]
    if operator == "mean":
        found = _mean(graph, node)
        if found is not None:
            return found
    if operator in ("flatten", "reshape"):
        return _reshape(node)
    return [_operator(graph, node)]


def _linear(graph: Graph, layer: Layer) -> nn.Module:
    weight = graph.tensors[layer.weight] if layer.kind == "linear" else graph.tensors[layer.weight].t()
    made: nn.Linear = torch.nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, weight.shape[1], weight.shape[0], layer.bias is not None, device=weight.device, dtype=weight.dtype
    )
    with torch.no_grad():
        made.weight.copy_(weight)
        if layer.bias is not None:
            made.bias.copy_(graph.tensors[layer.bias])
    return made


def _norm(graph: Graph, node: Node) -> nn.Module:
    """A batch norm with copies of the stored parameters and statistics."""
    weight, bias, mean, variance = (graph.parameter_of(argument) for argument in node.args[1:5])
    given = arguments(node)
    if mean is None or variance is None or given.get("training") or (weight is None) != (bias is None):
        raise _unknown(node, "works with the statistics of the batch; use a BatchNorm with stored ones in eval mode")
    statistics = graph.tensors[mean]
    dimensions = len(graph.shape(node.args[0]))  # type: ignore[arg-type]
    made = _NORMS[dimensions](
        len(statistics), given["eps"], given["momentum"], weight is not None, device=statistics.device,
        dtype=statistics.dtype,
    )  # fmt: skip
    names = {"running_mean": mean, "running_var": variance, "weight": weight, "bias": bias}
    state = {key: graph.tensors[name] for key, name in names.items() if name is not None}
    made.load_state_dict({**made.state_dict(), **state})
    return made


def _pool(node: Node, operator: str) -> nn.Module:
    given = {key: value for key, value in arguments(node).items() if key not in ("self", "input")}
    if given.get("stride") == []:
        del given["stride"]
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    flat = torch.utils._pytree.tree_leaves(list(sizes.values()))
    if not all(size is None or isinstance(size, int) for size in flat):
        raise _unknown(node, "depends on sizes of other values")
    return _POOLS[operator](**sizes)


def _mean(graph: Graph, node: Node) -> list[nn.Module] | None:
    """Pooling to one position where the mean is over all spatial axes; else None."""
    given, source = arguments(node), node.args[0]
    size = len(graph.shape(source))  # type: ignore[arg-type]
    taken = sorted(axis % size for axis in given.get("dim") or ())
    if size not in (3, 4) or taken != list(range(2, size)) or given["dtype"] is not None:
        return None
    pool = nn.AdaptiveAvgPool1d(1) if size == 3 else nn.AdaptiveAvgPool2d(1)
    return [pool] if given["keepdim"] else [pool, nn.Flatten()]


def _reshape(node: Node) -> list[nn.Module]:
    """Flattening of each image, or a reshape of each image to a fixed shape."""
    before, after = (value.meta["val"].shape for value in (node.args[0], node))  # type: ignore[union-attr]
    if not is_dynamic(after[0]) or any(is_dynamic(size) for size in [*before[1:], *after[1:]]):
        raise _unknown(node, "gives each image no fixed shape")
    if len(after) == 2 and int(after[1]) == math.prod(int(size) for size in before[1:]):
        return [nn.Flatten()]
    return [nn.Flatten(), nn.Unflatten(1, tuple(int(size) for size in after[1:]))]  # which mixes no images


def _operator(graph: Graph, node: Node) -> Operator:
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.name.startswith("aten::") or not isinstance(node.meta.get("val"), Tensor):
        raise _unknown(node, "is no plain operator with one result")
    readings = [argument for argument in node.all_input_nodes if argument is not node.args[0]]
    if readings:
        name = graph.parameter_of(readings[0]) or readings[0].name
        raise _unknown(node, f"reads {name} besides its input")
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda _: _INPUT)
    plain = torch.utils._pytree.tree_map(lambda value: value, (tuple(args), dict(kwargs)))
    overload = getattr(node.target, "_overloadname", "default")
    return Operator(f"{operator_name(node)}.{overload}", *plain)


def _unknown(node: Node, fault: str) -> InputError:
    return InputError(
        f"the model cannot be serialised: {node.name} ({node.target}, outside of its blocks) {fault}. Replace it, or "
        "serialise the part of the model that holds the blocks"
    )


def node_name(graph: Graph, node: Node) -> str:
    """Path of the module that stands for an operator; else the path of the calling module and the operator's name."""
    if isinstance(plain_layer(graph, node), Layer):
        return name_of(graph, node)
    path, kind = calling_module(node)
    path = path.partition("@")[0]
    if path and kind.startswith("torch.nn.") and "container" not in kind:
        return path
    return f"{path}.{operator_name(node)}" if path else operator_name(node)


class ChildNames:
    """Unique names of child modules: module paths with underscores in place of dots."""

    def __init__(self) -> None:
        self._taken = set(dir(nn.Sequential()))

    def unique(self, path: str) -> str:
        """A name for a module path that is not in use yet; it is in use from now on."""
        wanted = path.replace(".", "_")
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name
