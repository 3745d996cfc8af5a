"""Linear layers as the kernels see them: convolutions, transposed convolutions and fully connected layers.

Each computes Y = X Wᵀ, with X the patches of its input and W (groups, outputs, features). Features are channel-major:
feature = (input channel within the conv group, kernel row, kernel column).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.fx import Node

from .._native import HALF, Window
from .graph import Graph, arguments, is_tensor, operator_name

Kind = Literal["conv", "transposed", "linear"]
LAYERS = ("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution linear").split()
NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")
MAX_FEATURES = 16384
"""Layers with more input features are not measured: their Gram matrix would take more than 2 GB."""
_NO_OPERATION = ("dropout", "feature_dropout", "clone", "contiguous", "detach", "alias")


@dataclass(frozen=True)
class Layer:
    """One convolution, transposed convolution or linear layer of a captured graph.

    Attributes:
        name: Module path, such as ``layer1.0.conv2``.
        node: Its operator in the graph; ``node.args[0]`` is its input.
        weight: Qualified name of its weight.
        bias: Qualified name of its bias, or None.
        spatial: Number of spatial axes: 0 for a linear layer, 1 or 2 for a convolution.
        window: Kernel, stride, padding, dilation, groups; for a transposed convolution those of
            the equal plain convolution over the zero-stuffed input.
        upsampling: Zero-stuffing factor per spatial axis, (1, 1) but for transposed convolutions.
        positions: Number of positions per image at which each weight is used.
        features: Columns of the patch matrix, per conv group.
    """

    name: str
    node: Node
    kind: Kind
    weight: str
    bias: str | None
    spatial: int
    window: Window
    upsampling: tuple[int, int]
    positions: int
    features: int

    @property
    def in_axis(self) -> int:
        """Axis of the weight along which the input channels of a conv group run."""
        return 0 if self.kind == "transposed" else 1

    @property
    def out_axis(self) -> int:
        """Axis of the weight along which the output channels run."""
        return 1 if self.kind == "transposed" else 0

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads one input channel only, of several."""
        return self.window.groups > 1 and self.features == self.taps

    @property
    def taps(self) -> int:
        """Kernel positions per input channel."""
        return math.prod(self.window.kernel)

    @property
    def input(self) -> Node:
        """The node that the layer reads."""
        node = self.node.args[0]
        assert isinstance(node, Node)
        return node

    def matrix(self, weight: Tensor) -> Tensor:
        """Weight as (groups, outputs per group, features), float64."""
        groups = self.window.groups
        if self.kind == "transposed":
            split = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
            weight = split.flip(tuple(range(3, split.dim()))).flatten(0, 1)
        return weight.detach().double().reshape(groups, weight.shape[0] // groups, -1)

    def weight_from(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Inverse of ``matrix``: a weight of the shape and dtype of ``like``."""
        if self.kind != "transposed":
            return matrix.reshape(like.shape).to(like.dtype)
        groups, outputs, _ = matrix.shape
        kernel = like.shape[2:]
        split = matrix.reshape(groups, outputs, -1, *kernel).flip(tuple(range(3, 3 + len(kernel))))
        return split.transpose(1, 2).reshape(like.shape).to(like.dtype).contiguous()

    def patches_of(self, value: Tensor) -> Tensor:
        """The layer's input as the (images, channels, height, width) that the kernels read, in a dtype they read."""
        value = _in_readable_dtype(value)
        if self.spatial == 0:
            return _dense(value.reshape(-1, value.shape[-1], 1, 1))
        if self.spatial == 1:
            value = value.unsqueeze(2)
        rows, columns = self.upsampling
        if (rows, columns) != (1, 1):
            height, width = value.shape[2], value.shape[3]
            stuffed = value.new_zeros(*value.shape[:2], (height - 1) * rows + 1, (width - 1) * columns + 1)
            stuffed[:, :, ::rows, ::columns] = value
            value = stuffed
        return _dense(value)

    def outputs_of(self, value: Tensor) -> Tensor:
        """A value at the layer's output as (images, outputs, height, width), in a dtype that the kernels read."""
        value = _in_readable_dtype(value)
        if self.spatial == 0:
            return _dense(value.reshape(-1, value.shape[-1], 1, 1))
        return _dense(value.unsqueeze(2) if self.spatial == 1 else value)


def _in_readable_dtype(value: Tensor) -> Tensor:
    """The value in float32; half precision stays as it is, since some kernels read it without a copy."""
    return value.detach() if value.dtype in HALF else value.detach().float()


def _dense(value: Tensor) -> Tensor:
    if value.is_contiguous() or value.is_contiguous(memory_format=torch.channels_last):
        return value
    return value.contiguous()


def name_of(graph: Graph, node: Node) -> str:
    """Module path of a layer's operator, from the name of its weight."""
    weight = graph.parameter_of(node.args[1])
    if weight is not None:
        return weight.rpartition(".")[0] or weight
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack and stack[-1][0] else node.name


def describe(graph: Graph, node: Node, *, computed_bias: bool = False) -> Layer | str | None:
    """The layer of a node; None for other operators; as text, the reason why reapx cannot refit the layer.

    Args:
        computed_bias: Whether to describe a layer whose bias forward() computes, as if it had none. It cannot be
            refitted, but its outputs can be cut.
    """
    operator = operator_name(node)
    if operator not in LAYERS:
        return None
    weight = graph.parameter_of(node.args[1])
    if weight is None or weight in graph.constants:
        return f"the weight of {node.name} is computed in forward(), not stored"
    bias_argument = node.args[2] if len(node.args) > 2 else None
    bias = graph.parameter_of(bias_argument)
    name = name_of(graph, node)
    if bias_argument is not None and bias is None and not computed_bias:
        return f"the bias of {name} is computed in forward(), not stored"
    if operator == "linear":
        count = math.prod(graph.shape(node)[:-1]) // graph.batch
        features = graph.tensors[weight].shape[1]
        return Layer(name, node, "linear", weight, bias, 0, Window(), (1, 1), count, features)
    spatial = len(graph.shape(node)) - 2
    if spatial not in (1, 2) or len(graph.tensors[weight].shape) != spatial + 2:
        return f"{name} is a convolution over {spatial} axes (1 and 2 are supported)"
    return _convolution(graph, node, operator, name, weight, bias, spatial)


def _convolution(
    graph: Graph, node: Node, operator: str, name: str, weight: str, bias: str | None, spatial: int
) -> Layer | str:
    given = arguments(node)

    def pair(key: str, default: int) -> tuple[int, int]:
        value = given.get(key, default)
        values = list(value) if isinstance(value, list | tuple) else [value] * spatial
        values = values * (spatial if len(values) == 1 else 1)
        neutral = 0 if key == "padding" else 1
        return (neutral, int(values[0])) if spatial == 1 else (int(values[0]), int(values[1]))

    kernel = tuple(graph.tensors[weight].shape[2:])
    taps = (1, int(kernel[0])) if spatial == 1 else (int(kernel[0]), int(kernel[1]))
    dilation, stride = pair("dilation", 1), pair("stride", 1)
    if isinstance(given.get("padding"), str):
        same = given["padding"] == "same"
        reach = (dilation[0] * (taps[0] - 1), dilation[1] * (taps[1] - 1))
        padding = (reach[0] // 2, reach[1] // 2) if same else (0, 0)
    else:
        padding = pair("padding", 0)
    groups = int(given.get("groups", 1))
    transposed = "transpose" in operator or bool(given.get("transposed", False))
    used_at = graph.shape(node.args[0] if transposed else node)  # type: ignore[arg-type]
    positions = math.prod(used_at) // used_at[1] // graph.batch
    if not transposed:
        window = Window(taps, stride, padding, dilation, groups)
        features = math.prod(graph.tensors[weight].shape[1:])
        return Layer(name, node, "conv", weight, bias, spatial, window, (1, 1), positions, features)
    before = (
        dilation[0] * (taps[0] - 1) - padding[0],
        dilation[1] * (taps[1] - 1) - padding[1],
    )
    if min(before) < 0:
        return f"{name} is a transposed convolution whose padding is larger than its kernel's reach"
    window = Window(taps, (1, 1), before, dilation, groups)
    features = graph.tensors[weight].shape[0] // groups * math.prod(taps)
    return Layer(name, node, "transposed", weight, bias, spatial, window, stride, positions, features)


def differs_at_border(node: Node, taps: int) -> bool:
    """Whether a layer maps a constant input to other values at the border than inside, as zero padding does.

    Args:
        node: The layer's operator.
        taps: Number of kernel positions.
    """
    given, name = arguments(node), operator_name(node)
    if name == "linear":
        return False
    padding = given["padding"]
    padded = (padding == "same" and taps > 1) if isinstance(padding, str) else any(padding)
    return padded or "transpose" in name or bool(given.get("transposed", False))


def can_refit(graph: Graph, layer: Layer) -> bool:
    """Whether the layer's weight is a parameter, and no other operator or module uses its weight or bias."""
    if layer.weight in graph.shared or layer.weight not in graph.trained:
        return False
    return layer.bias is None or layer.bias not in graph.shared


@dataclass(frozen=True)
class Tail:
    """The operators behind a layer that matter for its reconstruction.

    Attributes:
        norm: The batch norm that is the only operator to read the layer, or None.
        total: The residual add at which the branch ends, or None.
        other: The other operand of that add, or None.
    """

    norm: Node | None = None
    total: Node | None = None
    other: Node | None = None


def tail_of(graph: Graph, layer: Layer) -> Tail:
    """Follow the layer's output through a norm and operators that change nothing, up to a residual add."""
    node, norm = layer.node, None
    while node not in graph.outputs:
        users = graph.users.get(node, [])
        if len(users) != 1:
            break
        user = users[0]
        operator = operator_name(user)
        if operator in NORMS and norm is None and _is_norm_of(graph, user, layer):
            norm = user
        elif operator == "add":
            return _residual(graph, node, user, norm)
        elif operator not in _NO_OPERATION and operator != "getitem":
            break
        node = user
    return Tail(norm)


def _is_norm_of(graph: Graph, norm: Node, layer: Layer) -> bool:
    """Whether a batch norm normalises the layer's outputs, with a running mean that no other operator uses."""
    mean = graph.parameter_of(norm.args[3])
    along_outputs = layer.spatial > 0 or len(graph.shape(layer.node)) == 2
    return along_outputs and mean is not None and mean not in graph.shared


def _residual(graph: Graph, node: Node, add: Node, norm: Node | None) -> Tail:
    operands = add.args[:2]
    other = operands[1] if operands[0] is node else operands[0]
    plain = is_tensor(other) and other in graph.varying and other is not node
    if not plain or add.kwargs.get("alpha", 1) != 1:
        return Tail(norm)
    assert isinstance(other, Node)
    if graph.shape(other) != graph.shape(node):
        return Tail(norm)
    return Tail(norm, add, other)


def norm_affine(graph: Graph, norm: Node, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Per-channel scale and shift (C,), float64, of a batch norm in eval mode."""
    weight, bias, mean, variance = (graph.parameter_of(argument) for argument in norm.args[1:5])
    assert mean is not None and variance is not None
    epsilon = float(arguments(norm)["eps"])
    scale = (tensors[variance].double() + epsilon).rsqrt()
    if weight is not None:
        scale = scale * tensors[weight].double()
    shift = -tensors[mean].double() * scale
    return scale, shift if bias is None else shift + tensors[bias].double()
