"""Checks that activations are finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import Node

from ..calibration.images import Images
from ..capture.execution import run
from ..capture.graph import Graph
from ..capture.layers import Layer
from ..errors import NumericalError


def not_finite(layer: Layer | None, channel: int | None, batch: int) -> NumericalError:
    """The error for a value that is NaN or infinite.

    Args:
        layer: The layer that reads it; None for the model's output.
        channel: Input channel of the layer, or None if unknown.
        batch: Index of the batch.
    """
    where = "the model's output" if layer is None else f"an activation at layer {layer.name}"
    where += "" if channel is None else f", input channel {channel}"
    return NumericalError(
        f"NaN or Inf in {where} (batch {batch}): check the images' normalisation and the model's weights, for "
        "instance with torch.isfinite"
    )


def check_outputs(graph: Graph, layers: list[Layer], images: Images) -> None:
    """Refuse a network whose output is NaN.

    Args:
        graph: The captured network.
        layers: Layers whose inputs are searched.
        images: Calibration images; two are run.

    Raises:
        NumericalError: an output is NaN; the message names the first layer with a non-finite input.
    """
    by_node = {layer.node: layer for layer in layers}
    culprits: list[tuple[Layer, int]] = []

    def visit(node: Node, values: Mapping[Node, object], _: object) -> None:
        if node in by_node and not culprits:
            source = values[by_node[node].input]
            assert isinstance(source, Tensor)
            channels = source.shape[1 if by_node[node].spatial else -1]
            finite = torch.isfinite(by_node[node].patches_of(source)).all(0).reshape(channels, -1).all(1)
            culprits.extend((by_node[node], int(channel)) for channel in (~finite).nonzero()[:1])

    outputs = run(graph, images.example(2), graph.tensors, visit)
    if any(bool(torch.isnan(value).any()) for value in outputs):
        layer, channel = culprits[0] if culprits else (None, None)
        raise not_finite(layer, channel, 0)
