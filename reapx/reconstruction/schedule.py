"""Schedule: the order in which layers are refitted, and which of them repair a residual sum."""

from __future__ import annotations

from torch.fx import Node

from ..capture.dependence import ancestors
from ..capture.graph import Graph
from ..capture.layers import Layer
from ..capture.tails import tail_of


def schedule(graph: Graph, layers: list[Layer]) -> list[tuple[Layer, bool]]:
    """The order of refitting: (layer, whether its target is the residual one).

    A residual target needs the pruned shortcut, so all layers above the shortcut are refitted first. Where two layers
    end in the same add, the one with more features comes last and takes the residual target.
    """
    order: list[tuple[Layer, bool]] = []
    started: set[Node] = set()
    finished: set[Node] = set()

    def process(layer: Layer) -> None:
        if layer.node in started:
            return
        started.add(layer.node)
        tail, residual = tail_of(graph, layer), False
        if tail.total is not None and tail.other is not None:
            above = ancestors([tail.other])
            first = [x for x in layers if x.node in above and x.node not in finished]
            rivals = [x for x in first if tail_of(graph, x).total is tail.total]
            if not any(rival.features > layer.features for rival in rivals):
                for other in first:
                    process(other)
                residual = all(x.node in finished for x in first)
        finished.add(layer.node)
        order.append((layer, residual))

    for layer in layers:
        process(layer)
    return order
