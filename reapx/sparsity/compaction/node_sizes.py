"""Node sizes: the largest magnitudes of every node's weights, and the limits up to which they count as zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import _native
from ...capture.graph import Graph
from ...capture.layers import Layer
from ...capture.tails import norm_affine, tail_of


@dataclass(frozen=True)
class NodeSizes:
    """Largest magnitudes of one layer's weights, on the CPU.

    Attributes:
        incoming: (outputs,) float32, of each output's incoming weights, times the scale of the batch norm that is the
            only operator to read it.
        outgoing: (inputs,) float32, of each input's outgoing weights; inputs of one conv group.
    """

    incoming: Tensor
    outgoing: Tensor


@dataclass(frozen=True)
class ZeroLimits:
    """Largest magnitudes that count as zero in one layer, for incoming and for outgoing weights."""

    incoming: float
    outgoing: float


def sizes_of(graph: Graph, layers: Sequence[Layer], tensors: Mapping[str, Tensor]) -> list[NodeSizes]:
    """The node sizes of every layer, from one pass over all weights."""
    weights = [tensors[layer.weight].movedim(layer.out_axis, 0) for layer in layers]
    found = _native.zero_scan([weight.float().contiguous() for weight in weights])
    pairs = [(rows.cpu(), columns.cpu()) for rows, columns in found]
    return [_sizes(graph, layer, tensors, *pair) for layer, pair in zip(layers, pairs, strict=True)]


def _sizes(graph: Graph, layer: Layer, tensors: Mapping[str, Tensor], rows: Tensor, columns: Tensor) -> NodeSizes:
    norm = tail_of(graph, layer).norm
    if norm is not None:
        scale = norm_affine(graph, norm, tensors)[0].abs().float().cpu()
        if len(scale) == len(rows):  # differs for grouped transposed convolutions, whose channels all stay
            rows = rows * scale
    return NodeSizes(rows, columns)


def limits_of(sizes: NodeSizes, relative: float, absolute: float) -> ZeroLimits:
    """The limits of a layer: ``absolute``, or ``relative`` times the layer's largest finite size if that is larger."""
    finite = [values[values.isfinite()] for values in (sizes.incoming, sizes.outgoing)]
    largest = [float(values.max()) if len(values) else 0.0 for values in finite]
    return ZeroLimits(*(max(absolute, relative * value) for value in largest))


def without_zeros(layer: Layer, weight: Tensor, sizes: NodeSizes, limits: ZeroLimits) -> Tensor:
    """A copy of a layer's weight with exact zeros in the rows and columns that count as zero."""
    weight = weight.clone()
    weight.movedim(layer.out_axis, 0)[dead_rows(sizes, limits)] = 0
    weight.movedim(layer.in_axis, 0)[sizes.outgoing <= limits.outgoing] = 0
    return weight


def dead_rows(sizes: NodeSizes, limits: ZeroLimits) -> Tensor:
    """(outputs,) bool: whether a node's incoming weights count as zero."""
    return torch.as_tensor(sizes.incoming <= limits.incoming)
