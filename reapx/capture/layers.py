"""Linear layers as the kernels see them: convolutions, transposed convolutions and fully connected layers.

Each computes Y = X Wᵀ, with X the patches of its input and W (groups, outputs, features). Features are channel-major:
feature = (input channel within the conv group, kernel row, kernel column).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from .._native import HALF, Window
from .graph import Graph, arguments, calling_module, operator_name

Kind = Literal["conv", "transposed", "linear", "turned"]
"""``"turned"`` is a linear layer whose weight is stored as (inputs, outputs)."""
LAYERS = ("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution linear").split()
NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")
MAX_FEATURES = 16384
"""Layers with more input features are not measured: their Gram matrix would take more than 2 GB."""


@dataclass(frozen=True)
class Depth:
    """The first of three spatial axes, along which the slices that a kernel reads become channels.

    A convolution over three axes is one over two, of ``channels * kernel`` channels, at every depth that it puts out.
    """

    kernel: int
    stride: int
    padding: int
    dilation: int

    def unfold(self, value: Tensor) -> Tensor:
        """(images * depths, channels * kernel, height, width) of (images, channels, depth, height, width)."""
        images, channels, size, *plane = value.shape
        value = F.pad(value, (0, 0, 0, 0, self.padding, self.padding))
        count = (size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1
        reach = (count - 1) * self.stride + 1
        taps = [value[:, :, k * self.dilation :][:, :, : reach : self.stride] for k in range(self.kernel)]
        return torch.stack(taps, 2).movedim(3, 1).reshape(images * count, channels * self.kernel, *plane)


@dataclass(frozen=True)
class Layer:
    """One convolution, transposed convolution or linear layer of a captured graph.

    Attributes:
        name: Module path, such as ``layer1.0.conv2``.
        node: Its operator in the graph; ``node.args[0]`` is its input.
        weight: Qualified name of its weight.
        bias: Qualified name of its bias, or None.
        spatial: Number of spatial axes: 0 for a linear layer, 1 to 3 for a convolution.
        window: Kernel, stride, padding, dilation, groups; for a transposed convolution those of
            the equal plain convolution over the zero-stuffed input.
        upsampling: Zero-stuffing factor per spatial axis, (1, 1) but for transposed convolutions.
        positions: Number of positions per image at which each weight is used.
        features: Columns of the patch matrix, per conv group.
        depth: Of a convolution over three axes, the window along the first; ``window`` then has the others.
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
    depth: Depth | None = None

    @property
    def in_axis(self) -> int:
        """Axis of the weight along which the input channels of a conv group run."""
        return 1 - self.out_axis

    @property
    def out_axis(self) -> int:
        """Axis of the weight along which the output channels run."""
        return 1 if self.kind in ("transposed", "turned") and not self.depthwise else 0

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads one input channel only, of several."""
        return self.window.groups > 1 and self.features == self.taps

    @property
    def taps(self) -> int:
        """Kernel positions per input channel."""
        return math.prod(self.window.kernel) * (1 if self.depth is None else self.depth.kernel)

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
        elif self.kind == "turned":
            weight = weight.t().contiguous()
        return weight.detach().double().reshape(groups, weight.shape[0] // groups, -1)

    def weight_from(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Inverse of ``matrix``: a weight of the shape and dtype of ``like``."""
        if self.kind == "turned":
            return matrix[0].t().to(like.dtype).contiguous()
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
        if self.depth is not None:
            value = self.depth.unfold(value)
        rows, columns = self.upsampling
        if (rows, columns) != (1, 1):
            *outer, height, width = value.shape
            stuffed = value.new_zeros(*outer, (height - 1) * rows + 1, (width - 1) * columns + 1)
            stuffed[:, :, ::rows, ::columns] = value
            value = stuffed
        return _dense(value)

    def outputs_of(self, value: Tensor) -> Tensor:
        """A value at the layer's output as (images, outputs, height, width), in a dtype that the kernels read."""
        value = _in_readable_dtype(value)
        if self.spatial == 0:
            return _dense(value.reshape(-1, value.shape[-1], 1, 1))
        if self.spatial == 3:
            value = value.transpose(1, 2).flatten(0, 1)
        return _dense(value.unsqueeze(2) if self.spatial == 1 else value)

    def plane(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of ``patches_of``'s result for the shape of an output."""
        return (1, 1) if self.spatial == 0 else (1, shape[2]) if self.spatial == 1 else (shape[-2], shape[-1])


def _in_readable_dtype(value: Tensor) -> Tensor:
    """The value in float32; half precision stays as it is, since some kernels read it without a copy."""
    return value.detach() if value.dtype in HALF else value.detach().float()


def _dense(value: Tensor) -> Tensor:
    dense = value.is_contiguous() or value.is_contiguous(memory_format=torch.channels_last)
    return value if dense else value.contiguous()


def _weight_of(graph: Graph, node: Node) -> tuple[bool, str | None]:
    """Whether a layer's operator reads a stored weight with its two axes exchanged, and the weight's name if any."""
    argument = node.args[1]
    turned = isinstance(argument, Node) and argument.op == "call_function" and operator_name(argument) == "t"
    return turned, graph.parameter_of(argument.args[0] if turned else argument)  # type: ignore[union-attr]


def name_of(graph: Graph, node: Node) -> str:
    """Module path of a layer's operator, from the name of its weight."""
    _, weight = _weight_of(graph, node)
    if weight is not None:
        path, _, leaf = weight.rpartition(".")
        return weight if leaf.startswith("weight_ih") else path or weight  # a recurrent module has several
    path, _ = calling_module(node)
    return path or node.name


def describe(graph: Graph, node: Node, *, computed_bias: bool = False) -> Layer | str | None:
    """The layer of a node; None for other operators; as text, the reason why reapx cannot refit the layer.

    Args:
        computed_bias: Whether to describe a layer whose bias forward() computes, as if it had none. It cannot be
            refitted, but its outputs can be cut.
    """
    operator = operator_name(node)
    if operator not in LAYERS:
        return None
    turned, weight = _weight_of(graph, node)
    if weight is None or weight in graph.constants:
        return f"the weight of {node.name} is computed in forward(), not stored"
    bias_argument = node.args[2] if len(node.args) > 2 else None
    bias = graph.parameter_of(bias_argument)
    name = name_of(graph, node)
    if bias_argument is not None and bias is None and not computed_bias:
        return f"the bias of {name} is computed in forward(), not stored"
    if operator == "linear":
        count = math.prod(graph.shape(node)[:-1]) // graph.batch
        features = graph.tensors[weight].shape[0 if turned else 1]
        kind: Kind = "turned" if turned else "linear"
        return Layer(name, node, kind, weight, bias, 0, Window(), (1, 1), count, features)
    if turned:
        return f"the weight of {name} is turned in forward()"
    spatial = len(graph.shape(node)) - 2
    if spatial not in (1, 2, 3) or len(graph.tensors[weight].shape) != spatial + 2:
        return f"{name} is a convolution of an input without a batch axis"
    return _convolution(graph, node, operator, name, weight, bias, spatial)


def _convolution(
    graph: Graph, node: Node, operator: str, name: str, weight: str, bias: str | None, spatial: int
) -> Layer | str:
    given = arguments(node)
    groups, transposed = int(given.get("groups", 1)), "transpose" in operator or bool(given.get("transposed", False))
    taps = tuple(int(size) for size in graph.tensors[weight].shape[2:])
    dilation, stride = (_each_axis(given.get(key, 1), spatial) for key in ("dilation", "stride"))
    padding = given.get("padding", 0)
    if isinstance(padding, str):
        same = padding == "same"
        padding = tuple(d * (k - 1) // 2 if same else 0 for d, k in zip(dilation, taps, strict=True))
    padding = _each_axis(padding, spatial)
    if transposed and spatial == 3:
        return f"{name} is a transposed convolution over 3 axes"
    used_at = graph.shape(node.args[0] if transposed else node)  # type: ignore[arg-type]
    positions = math.prod(used_at) // used_at[1] // graph.batch
    depth = Depth(taps[0], stride[0], padding[0], dilation[0]) if spatial == 3 else None
    kernel, steps, pads, spread = _pair(taps, 1), _pair(stride, 1), _pair(padding, 0), _pair(dilation, 1)
    if not transposed:
        window = Window(kernel, steps, pads, spread, groups)
        features = math.prod(graph.tensors[weight].shape[1:])
        return Layer(name, node, "conv", weight, bias, spatial, window, (1, 1), positions, features, depth)
    before = spread[0] * (kernel[0] - 1) - pads[0], spread[1] * (kernel[1] - 1) - pads[1]
    if min(before) < 0:
        return f"{name} is a transposed convolution whose padding is larger than its kernel's reach"
    window = Window(kernel, (1, 1), before, spread, groups)
    features = graph.tensors[weight].shape[0] // groups * math.prod(taps)
    return Layer(name, node, "transposed", weight, bias, spatial, window, steps, positions, features)


def _each_axis(value: Any, spatial: int) -> tuple[int, ...]:
    """An argument that may be one number for all spatial axes."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(int(number) for number in values * (spatial if len(values) == 1 else 1))


def _pair(values: tuple[int, ...], neutral: int) -> tuple[int, int]:
    """The numbers of the last two spatial axes; of one axis, as if there were another before it."""
    return (neutral, values[0]) if len(values) == 1 else (values[-2], values[-1])


def calls_of(graph: Graph, layer: Layer) -> list[Layer]:
    """A layer's calls in execution order: operators that read its weight and bias in the same way, itself among them.

    Strides, paddings and dilations may differ from call to call. Where another operator reads the weight otherwise,
    the layer stands alone.
    """
    weight = layer.node.args[1]
    users = graph.users.get(weight, []) if isinstance(weight, Node) else []
    calls = [describe(graph, user) for user in users]
    alike = [x for x in calls if isinstance(x, Layer) and x.weight == layer.weight and _alike(x, layer)]
    return alike if len(alike) == len(users) else [layer]


def _alike(one: Layer, other: Layer) -> bool:
    kinds = [(x.kind, x.spatial, x.window.kernel, x.window.groups, x.upsampling, x.bias) for x in (one, other)]
    return kinds[0] == kinds[1]


def can_refit(graph: Graph, layer: Layer) -> bool:
    """Whether the layer's weight is a parameter, and nothing but the layer's own calls uses its weight or bias."""
    if layer.weight not in graph.trained:
        return False
    names = [name for name in (layer.weight, layer.bias) if name is not None and name in graph.shared]
    if not names:
        return True
    nodes = {call.node for call in calls_of(graph, layer)}
    return all(set(graph.readers(name)) == nodes for name in names)
