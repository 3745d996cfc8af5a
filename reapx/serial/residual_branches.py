"""The two branches of a residual block: convolutions with ReLU between them, and a linear shortcut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from ..capture.graph import Graph, arguments, operator_name
from ..capture.layers import NORMS, Layer
from ..capture.tails import norm_affine
from .value_flow import ValueFlow, axes, is_idle, plain_layer, refusal

ShortcutKind = Literal["identity", "option A", "projection"]

ACTIVATIONS = frozenset(
    "relu relu6 hardtanh silu gelu hardswish hardsigmoid leaky_relu prelu rrelu elu selu celu mish sigmoid tanh "
    "softplus clamp clamp_min clamp_max threshold softsign hardshrink softshrink".split()
)
_CUTS = {"relu6": "6", "hardtanh": "its upper end", "clamp": "its upper end", "clamp_max": "its end"}
_POOLS = ("avg_pool1d", "avg_pool2d", "max_pool1d", "max_pool2d")
_PLAIN = "Only blocks relu(f(x) + shortcut(x)) can be, f being convolutions, each with an optional batch norm, and ReLU"


@dataclass(frozen=True)
class Conv:
    """A convolution, and the batch norm that is the only operator to read it, if any."""

    layer: Layer
    norm: Node | None = None

    def folded(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Weight and bias, float64, of one convolution that equals the convolution and its norm."""
        weight = graph.tensors[self.layer.weight].double()
        stored = graph.tensors[self.layer.bias].double() if self.layer.bias else None
        bias = weight.new_zeros(weight.shape[0]) if stored is None else stored
        if self.norm is None:
            return weight, bias
        scale, shift = norm_affine(graph, self.norm, graph.tensors)
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), bias * scale + shift

    @property
    def stride(self) -> tuple[int, ...]:
        """Stride along each spatial axis."""
        return axes(self.layer.window.stride, self.layer.spatial)

    @property
    def tap(self) -> tuple[int, ...] | None:
        """The kernel position that reads input ``stride * i`` for output i; None if the kernel has none."""
        window, spatial = self.layer.window, self.layer.spatial
        taps = []
        for size, step, border in zip(
            axes(window.kernel, spatial), axes(window.dilation, spatial), axes(window.padding, spatial), strict=True
        ):
            if border % step or border // step >= size:
                return None
            taps.append(border // step)
        return tuple(taps)


@dataclass(frozen=True)
class Shortcut:
    """A linear shortcut: shortcut(x)[i] = matrix x[stride * i] + shift.

    Attributes:
        kind: "identity", "option A" (subsampling and zero-padded channels) or "projection".
        stride: Stride along each spatial axis.
        matrix: (outputs, inputs) float64.
        shift: (outputs,) float64.
    """

    kind: ShortcutKind
    stride: tuple[int, ...]
    matrix: Tensor
    shift: Tensor


def foldable(graph: Graph, node: Node) -> bool:
    """Whether a batch norm uses stored statistics and parameters, so that it can be folded."""
    if arguments(node).get("training"):
        return False
    return all(graph.parameter_of(argument) is not None for argument in node.args[3:5]) and all(
        argument is None or graph.parameter_of(argument) is not None for argument in node.args[1:3]
    )


def branch(flow: ValueFlow, name: str, fork: Node, end: Node) -> list[Node]:
    """The operators of one branch from the fork to its end, without those that change nothing.

    Args:
        flow: The captured network.
        name: Name of the block, for error messages.
        fork: The value that the branch reads.
        end: The last operator of the branch.

    Raises:
        InputError: the branch is not a chain, or has a layer that reapx cannot describe.
    """
    found: list[Node] = []
    node = end
    while node is not fork:
        sources = flow.sources(node)
        reason = plain_layer(flow.graph, node)
        if isinstance(reason, str):
            raise refusal(name, reason, _PLAIN)
        if len(sources) != 1:
            raise joined(name, node)
        if not is_idle(node):
            found.append(node)
        node = sources[0]
    return found[::-1]


def joined(name: str, node: Node) -> Exception:
    """The error for an operator other than the block's own add that joins several values."""
    operator = operator_name(node)
    if operator == "add":
        return refusal(name, f"values are added in {node.name} inside of one of its branches", _PLAIN)
    hints = {
        "cat": "DenseNet and fire modules have no serial form; zero channels are better padded by F.pad",
        "mul": "gates such as squeeze-and-excitation have no serial form",
    }
    return refusal(name, f"values are joined by {operator}", hints.get(operator, _PLAIN))


def rank(graph: Graph, nodes: Sequence[Node]) -> tuple[bool, int, int]:
    """Sort key that places f behind the shortcuts: activations, number of convolutions, size of their kernels."""
    layers = [layer for node in nodes if isinstance(layer := plain_layer(graph, node), Layer)]
    return is_active(nodes), len(layers), sum(layer.taps for layer in layers)


def is_active(nodes: Sequence[Node]) -> bool:
    """Whether a branch has an activation."""
    return any(operator_name(node) in ACTIVATIONS for node in nodes)


def read_convolutions(graph: Graph, name: str, nodes: Sequence[Node]) -> list[Conv]:
    """The convolutions of f.

    Raises:
        InputError: f is not a sequence of convolutions, each with an optional norm, with a ReLU between each two.
    """
    convs: list[Conv] = []
    free = True  # whether a convolution may come next: at the start, and behind a ReLU
    for node in nodes:
        operator, layer = operator_name(node), plain_layer(graph, node)
        if isinstance(layer, Layer) and layer.kind == "conv":
            if not free:
                raise refusal(name, f"there is no ReLU between {convs[-1].layer.name} and {layer.name}", _PLAIN)
            _check_convolution(name, Conv(layer))
            convs.append(Conv(layer))
            free = False
        elif operator in NORMS and not free and convs[-1].norm is None and foldable(graph, node):
            convs[-1] = Conv(convs[-1].layer, node)
        elif operator == "relu" and not free:
            free = True
        else:
            raise _misplaced(name, operator, bool(convs))
    if free:
        raise refusal(name, "a ReLU stands behind the last convolution of f, before the sum", _PLAIN)
    return convs


def _check_convolution(name: str, conv: Conv) -> None:
    layer, window = conv.layer, conv.layer.window
    if window.groups != 1:
        raise refusal(
            name,
            f"{layer.name} has {window.groups} groups, and carried channels need connections of their own",
            "Only blocks of plain convolutions (groups=1) can be",
        )
    if conv.tap is None:
        kernel, dilation, padding = (axes(x, layer.spatial) for x in (window.kernel, window.dilation, window.padding))
        raise refusal(
            name,
            f"{layer.name} (kernel {kernel}, dilation {dilation}, padding {padding}) has no centre tap, so that a "
            "value would move",
            "Only kernels with dilation * tap == padding on each axis can carry values; an odd kernel with padding "
            "dilation * (kernel - 1) / 2 can",
        )


def _misplaced(name: str, operator: str, begun: bool) -> Exception:
    if not begun and operator in (*NORMS, "relu"):
        return refusal(
            name,
            f"it is a pre-activation block: f begins with {operator}, and the sum is not followed by ReLU, so that "
            "its values may be negative and a ReLU would not carry them",
            _PLAIN,
        )
    if operator in ACTIVATIONS - {"relu"}:
        cut = f": carried values above {_CUTS[operator]} would be cut" if operator in _CUTS else ""
        return refusal(name, f"its activation is {operator}, not ReLU{cut or ', and would change carried values'}",
                       "Train the network with ReLU first")  # fmt: skip
    if operator in NORMS:
        return refusal(name, f"{operator} is not where it can be folded, or has no stored statistics", _PLAIN)
    return refusal(name, f"f holds the operator {operator}", _PLAIN)


def read_shortcuts(graph: Graph, name: str, branches: Sequence[Sequence[Node]], like: Tensor, spatial: int) -> Shortcut:
    """The sum of all linear branches as one shortcut; the other arguments are those of ``read_shortcut``."""
    total, *others = (read_shortcut(graph, name, nodes, like, spatial) for nodes in branches)
    for other in others:
        if other.stride != total.stride:
            raise refusal(name, f"its shortcuts have strides {total.stride} and {other.stride}", _PLAIN)
        total = Shortcut("projection", total.stride, total.matrix + other.matrix, total.shift + other.shift)
    return total


def read_shortcut(graph: Graph, name: str, nodes: Sequence[Node], like: Tensor, spatial: int) -> Shortcut:
    """A linear branch as one matrix at one stride.

    Args:
        graph: The captured network.
        name: Name of the block, for error messages.
        nodes: The branch's operators, without those that change nothing.
        like: (outputs, inputs, ...) weight of f's first convolution.
        spatial: Number of spatial axes.

    Raises:
        InputError: the branch has other operators than subsampling, zero padding of channels, 1x1 convolutions and
            batch norms.
    """
    size = like.shape[1]
    matrix = torch.eye(size, dtype=torch.float64, device=like.device)
    shift, stride = matrix.new_zeros(size), (1,) * spatial
    kind: ShortcutKind = "option A" if nodes else "identity"
    for node in nodes:
        operator, layer = operator_name(node), plain_layer(graph, node)
        step = _subsampling(node, operator, spatial)
        padding = _channel_padding(node, operator, spatial)
        if isinstance(layer, Layer) and _is_projection(layer):
            weight, bias = Conv(layer).folded(graph)
            matrix, shift = weight.flatten(1) @ matrix, weight.flatten(1) @ shift + bias
            kind, step = "projection", Conv(layer).stride
        elif operator in NORMS and foldable(graph, node):
            scale, offset = norm_affine(graph, node, graph.tensors)
            matrix, shift, kind = scale[:, None] * matrix, scale * shift + offset, "projection"
        elif padding is not None:
            matrix, shift = F.pad(matrix, (0, 0, *padding)), F.pad(shift, padding)
        elif step is None:
            raise _not_linear(name, node, layer)
        if step is not None:
            stride = tuple(a * b for a, b in zip(stride, step, strict=True))
    return Shortcut(kind, stride, matrix, shift)


def _is_projection(layer: Layer) -> bool:
    return layer.kind == "conv" and layer.taps == 1 and layer.window.groups == 1 and not any(layer.window.padding)


def _subsampling(node: Node, operator: str, spatial: int) -> tuple[int, ...] | None:
    """The stride of a slice or of a pooling of size 1; None for other operators."""
    if operator == "slice":
        given = arguments(node)
        axis = given["dim"] % (spatial + 2)
        if axis < 2 or given["start"] not in (None, 0):
            return None
        return tuple(int(given["step"]) if axis == k + 2 else 1 for k in range(spatial))
    if operator not in _POOLS:
        return None
    given = arguments(node)
    if set(given["kernel_size"]) != {1} or any(given["padding"]) or given.get("divisor_override") not in (None, 1):
        return None
    step = [int(size) for size in given["stride"] or [1]]
    return tuple(step * (spatial if len(step) == 1 else 1))


def _channel_padding(node: Node, operator: str, spatial: int) -> tuple[int, int] | None:
    """The numbers of zero channels that a padding adds before and behind; None for other operators."""
    if operator not in ("pad", "constant_pad_nd"):
        return None
    given = arguments(node)
    if given.get("mode", "constant") != "constant" or given["value"]:
        return None
    sizes = [*given["pad"], 0, 0, 0, 0, 0, 0][: 2 * spatial + 4]
    before, behind = sizes[2 * spatial : 2 * spatial + 2]
    others = sizes[: 2 * spatial] + sizes[2 * spatial + 2 :]
    return (before, behind) if not any(others) and min(before, behind) >= 0 else None


def _not_linear(name: str, node: Node, layer: Layer | str | None) -> Exception:
    operator = layer.name if isinstance(layer, Layer) else operator_name(node)
    averaged = "; average pooling before the 1x1 convolution (ResNet-D) is not" if "avg_pool" in operator else ""
    return refusal(
        name,
        f"its shortcut has {operator} ({node.target})",
        "Shortcuts may be nothing, slices with steps from position 0, zero padding of channels, and 1x1 convolutions "
        f"with batch norm{averaged}",
    )
