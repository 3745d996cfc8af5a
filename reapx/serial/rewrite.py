"""Rewriting: a residual block as plain convolutions that carry its shortcut through their ReLUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..capture.graph import Graph, arguments
from ..capture.layers import Layer
from .blocks import ResidualBlock
from .residual_branches import Conv
from .value_flow import axes

Projection = Literal["carry", "split"]
CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}


@dataclass(frozen=True)
class Carry:
    """How channels carry a shortcut through the ReLUs of f.

    The first layer computes v = entry x + offset, and the last layer adds leave v + shift.

    Attributes:
        entry: (carried, inputs) float64.
        offset: (carried,) float64.
        leave: (outputs, carried) float64.
        shift: (outputs,) float64.
    """

    entry: Tensor
    offset: Tensor
    leave: Tensor
    shift: Tensor


def carry_of(block: ResidualBlock, projection: Projection) -> Carry:
    """How a block's shortcut is carried; x must not be negative, unless a projection is split by sign."""
    matrix, shift = block.shortcut.matrix, block.shortcut.shift
    outputs, inputs = matrix.shape

    def one(size: int) -> Tensor:
        return torch.eye(size, dtype=matrix.dtype, device=matrix.device)

    if block.shortcut.kind != "projection":  # a matrix of zeros and ones keeps values non-negative
        return Carry(matrix, shift, one(outputs), torch.zeros_like(shift))
    if projection == "carry":
        return Carry(one(inputs), matrix.new_zeros(inputs), matrix, shift)
    both = torch.cat([one(outputs), -one(outputs)], 1)
    return Carry(torch.cat([matrix, -matrix]), torch.cat([shift, -shift]), both, torch.zeros_like(shift))


def carried_channels(block: ResidualBlock, projection: Projection) -> int:
    """Number of channels that carry a block's shortcut; 0 where f is one convolution, which then includes it."""
    return 0 if len(block.convs) == 1 else len(carry_of(block, projection).offset)


def serial_convolutions(graph: Graph, block: ResidualBlock, projection: Projection) -> list[nn.Module]:
    """The convolutions that replace a block, in order; a ReLU belongs between each two."""
    if len(block.convs) == 1:
        weight, bias = block.convs[0].folded(graph)
        weight = weight.clone()  # it may be the model's own tensor
        _centre(block.convs[0], weight).add_(block.shortcut.matrix)
        return [convolution(graph, block.convs[0].layer, weight, bias + block.shortcut.shift)]
    carry = carry_of(block, projection)
    layers: list[nn.Module] = []
    for index, conv in enumerate(block.convs):
        weight, bias = conv.folded(graph)
        weight = weight.to(graph.tensors[conv.layer.weight].dtype)  # the carried channels enlarge it
        if index == 0:
            weight = _stack(conv, weight, carry.entry, rows=True, columns=False)
            bias = torch.cat([bias, carry.offset])
        elif index == len(block.convs) - 1:
            weight = _stack(conv, weight, carry.leave, rows=False, columns=True)
            bias = bias + carry.shift
        else:
            size = len(carry.offset)
            weight = _stack(conv, weight, torch.eye(size, device=weight.device), rows=True, columns=True)
            bias = torch.cat([bias, bias.new_zeros(size)])
        layers.append(convolution(graph, conv.layer, weight, bias))
    return layers


def _stack(conv: Conv, weight: Tensor, carried: Tensor, *, rows: bool, columns: bool) -> Tensor:
    """A weight with the carrying matrix at its centre tap, in additional rows and columns where asked for."""
    (outputs, inputs), (more, read) = weight.shape[:2], carried.shape
    size = (outputs + rows * more, inputs + columns * read)
    full = weight.new_zeros(*size, *weight.shape[2:])
    full[:outputs, :inputs] = weight
    _centre(conv, full)[rows * outputs :, columns * inputs :] = carried.to(full.dtype)
    return full


def _centre(conv: Conv, weight: Tensor) -> Tensor:
    """The (outputs, inputs) view of a weight at the centre tap."""
    assert conv.tap is not None
    for tap in conv.tap:
        weight = weight[:, :, tap]
    return weight


def convolution(graph: Graph, layer: Layer, weight: Tensor, bias: Tensor) -> nn.Module:
    """A convolution with the options of ``layer`` and another weight and bias, rounded to the layer's dtype."""
    window, spatial = layer.window, layer.spatial
    stored = graph.tensors[layer.weight]
    asked = arguments(layer.node).get("padding")
    made: nn.Conv1d | nn.Conv2d = torch.nn.utils.skip_init(  # type: ignore[no-untyped-call]
        CONVOLUTIONS[spatial],
        weight.shape[1] * window.groups,
        weight.shape[0],
        axes(window.kernel, spatial),
        axes(window.stride, spatial),
        asked if isinstance(asked, str) else axes(window.padding, spatial),
        axes(window.dilation, spatial),
        window.groups,
        device=stored.device,
        dtype=stored.dtype,
    )
    assert made.bias is not None
    with torch.no_grad():
        made.weight.copy_(weight)
        made.bias.copy_(bias)
    return made
