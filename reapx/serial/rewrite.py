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
    """How a shortcut goes through the ReLUs of f: entry x + offset in the first layer, leave v + shift in the last.

    Attributes:
        entry: (carried, inputs), float64.
        offset: (carried,).
        leave: (outputs, carried).
        shift: (outputs,).
    """

    entry: Tensor
    offset: Tensor
    leave: Tensor
    shift: Tensor


def carry_of(block: ResidualBlock, projection: Projection) -> Carry:
    """The channels that carry a block's shortcut; x is at least 0, unless its projection is split by sign."""
    matrix, shift = block.shortcut.matrix, block.shortcut.shift
    outputs, inputs = matrix.shape

    def one(size: int) -> Tensor:
        return torch.eye(size, dtype=matrix.dtype, device=matrix.device)

    if block.shortcut.kind != "projection":  # zeros and ones
        return Carry(matrix, shift, one(outputs), torch.zeros_like(shift))
    if projection == "carry":
        return Carry(one(inputs), matrix.new_zeros(inputs), matrix, shift)
    both = torch.cat([one(outputs), -one(outputs)], 1)
    return Carry(torch.cat([matrix, -matrix]), torch.cat([shift, -shift]), both, torch.zeros_like(shift))


def carried_channels(block: ResidualBlock, projection: Projection) -> int:
    """How many channels carry a block's shortcut; none where the one convolution takes it in."""
    return 0 if len(block.convs) == 1 else len(carry_of(block, projection).offset)


def serial_convolutions(graph: Graph, block: ResidualBlock, projection: Projection) -> list[nn.Module]:
    """The convolutions that stand for a block, in order; a ReLU belongs between each two."""
    if len(block.convs) == 1:
        weight, bias = block.convs[0].folded(graph)
        weight = weight.clone()  # it may be the model's own
        _centre(block.convs[0], weight).add_(block.shortcut.matrix)
        return [convolution(graph, block.convs[0].layer, weight, bias + block.shortcut.shift)]
    carry = carry_of(block, projection)
    layers: list[nn.Module] = []
    for index, conv in enumerate(block.convs):
        weight, bias = conv.folded(graph)
        weight = weight.to(graph.tensors[conv.layer.weight].dtype)  # what is carried makes it large
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
    """A weight with the matrix that carries at its centre tap, in rows and columns of its own or not."""
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
    """A convolution like ``layer`` with another weight and bias, rounded to its dtype."""
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
