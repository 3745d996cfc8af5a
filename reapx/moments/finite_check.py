"""Refusing activations that are not finite."""

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
    """The error for a value that is NaN or infinite: in a layer's input, or at the end of the network."""
    where = "the model's output" if layer is None else f"an activation at layer {layer.name}"
    where += "" if channel is None else f", input channel {channel}"
    return NumericalError(
        f"NaN or Inf in {where} (batch {batch}): check the images' normalisation and the model's weights, for "
        "instance with torch.isfinite"
    )


def check_outputs(graph: Graph, layers: list[Layer], images: Images) -> None:
    """Refuse a network that puts out NaN; names the first layer that reads something not finite."""
    by_node = {layer.node: layer for layer in layers}
    culprits: list[tuple[Layer, int]] = []

    def visit(node: Node, values: Mapping[Node, object], _: object) -> None:
        if node in by_node and not culprits:
            source = values[by_node[node].input]
            assert isinstance(source, Tensor)
            finite = torch.isfinite(by_node[node].patches_of(source)).all(0).flatten(1).all(1)
            culprits.extend((by_node[node], int(channel)) for channel in (~finite).nonzero()[:1])

    outputs = run(graph, images.example(2), graph.tensors, visit)
    if any(bool(torch.isnan(value).any()) for value in outputs):
        layer, channel = culprits[0] if culprits else (None, None)
        raise not_finite(layer, channel, 0)
