"""A network captured at several image sizes: what its weights leave no choice about is the same at all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from ...calibration.images import Images
from ...calibration.other_sizes import other_sizes
from ...capture.graph import Graph, capture
from ...capture.layers import Layer, describe
from ...errors import CaptureError
from ...surgery.proof import finite_outputs
from .known_values import known_values


@dataclass(frozen=True)
class View:
    """A network as captured with images of one size.

    Attributes:
        graph: Its graph.
        layers: Its layers, in the same order in every view.
        sized: Nodes with a number among their arguments, or constants, that are others in another view.
    """

    graph: Graph
    layers: list[Layer]
    sized: frozenset[Node]


def views_of(model: nn.Module, graph: Graph, layers: list[Layer], images: Images) -> list[View]:
    """A network as captured, and as it is with images of half and of twice the size, if it takes them.

    Args:
        graph: The network as captured with the images' own size.
        layers: Its layers.
    """
    others = [other for other in (_captured(model, images, batches) for batches in other_sizes(images.example(2)))
              if other is not None]  # fmt: skip
    found = [_layers(other) for other in others]
    same = [index for index, own in enumerate(found) if [x.weight for x in own] == [x.weight for x in layers]]
    sized = frozenset(node for index in same for node in _sized(graph, others[index]))
    return [View(graph, layers, sized), *(View(others[i], found[i], _sized(others[i], graph)) for i in same)]


def _captured(model: nn.Module, images: Images, batches: Sequence[tuple[Tensor, ...]]) -> Graph | None:
    for batch in batches:
        if finite_outputs(model, images, batch) is None:
            continue
        try:
            return capture(model, images.layout.arguments(batch))
        except CaptureError:
            continue
    return None


def _layers(graph: Graph) -> list[Layer]:
    return [layer for layer in (describe(graph, node) for node in graph.nodes) if isinstance(layer, Layer)]


def _sized(graph: Graph, other: Graph) -> frozenset[Node]:
    """Nodes of a graph whose numbers are not those of another, which was captured at another size."""
    mine, theirs = [*graph.parameters, *graph.nodes], [*other.parameters, *other.nodes]
    if [node.target for node in graph.nodes] != [node.target for node in other.nodes]:
        return frozenset()  # forward() does other things at another size
    found = {
        node
        for node, twin in zip(mine, theirs, strict=True)
        if node.op == "call_function" and _numbers(node) != _numbers(twin)
    }
    for node, name in graph.parameters.items():
        value, twin = graph.tensors[name], other.tensors.get(name)
        if name in graph.constants and (twin is None or value.shape != twin.shape or not torch.equal(value, twin)):
            found.add(node)
    return frozenset(found)


def _numbers(node: Node) -> list[object]:
    return [leaf for leaf in tree_leaves((node.args, node.kwargs)) if isinstance(leaf, int | float)]


def known_constants(views: Sequence[View], tensors: Mapping[str, Tensor], read: Collection[Node]) -> dict[Node, Tensor]:
    """What layers read of each channel, where it is one number at every position of every image of any size.

    Args:
        views: The network, and the same at other sizes.
        tensors: Qualified name -> parameter of the network.
        read: Nodes of the layers in question, in the first view.

    Returns:
        Layer's node -> (channels,) float64 on the CPU, NaN where it is not known.
    """
    found: dict[Node, Tensor] = {}
    places = [index for index, layer in enumerate(views[0].layers) if layer.node in read]
    for view in views:
        own = {**view.graph.tensors, **{name: tensors[name] for name in tensors if name not in view.graph.constants}}
        values = known_values(view.graph, own, {view.layers[place].input for place in places}, view.sized)
        for place in places:
            layer = view.layers[place]
            constant = _constant(layer, values[layer.input])
            key = views[0].layers[place].node
            found[key] = constant if key not in found else _agreed(found[key], constant)
    return found


def _constant(layer: Layer, value: Tensor) -> Tensor:
    flat = value.movedim(1 if layer.spatial else -1, 0).flatten(1).double()
    low, high = flat.amin(1), flat.amax(1)
    return _agreed(low, high).cpu()


def _agreed(one: Tensor, other: Tensor) -> Tensor:
    """The mean of two values that are equal but for rounding, else NaN."""
    same = (one - other).abs() <= 1e-6 * torch.maximum(one.abs(), other.abs())
    return torch.where(same, (one + other) / 2, torch.nan)
