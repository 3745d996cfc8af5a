"""Schedule: the order in which layers are refitted, and which of them repair a residual sum."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from ..capture.dependence import ancestors
from ..capture.graph import Graph
from ..capture.layers import Layer
from ..capture.tails import Tail, tail_of


@dataclass(frozen=True)
class Turn:
    """One layer's turn in the order of refitting.

    Attributes:
        calls: The layer's calls in execution order; most layers have one.
        tails: What follows each call.
        residual: Whether the target is the residual one.
        recurrent: Whether a call depends on another call of the same layer, so that no input of a later call is known
            before the layer is refitted.
    """

    calls: tuple[Layer, ...]
    tails: tuple[Tail, ...]
    residual: bool = False
    recurrent: bool = False


def schedule(graph: Graph, layers: list[Layer]) -> list[Turn]:
    """The order of refitting.

    A layer that is called several times comes behind all layers that one of its calls depends on, and is refitted
    once. A recurrent one waits for nothing: it is refitted on the original network's values.

    A residual target needs the pruned shortcut, so all layers above the shortcut are refitted first. Where two layers
    end in the same add, the one with more features comes last and takes the residual target.

    Args:
        graph: The pruned network.
        layers: The layers to refit, with all their calls, in execution order.
    """
    return _Order(graph, layers).turns


class _Order:
    """The order as far as it is known.

    Attributes:
        turns: The turns so far.
    """

    def __init__(self, graph: Graph, layers: list[Layer]) -> None:
        self._graph = graph
        self._calls: dict[str, list[Layer]] = {}
        for layer in layers:
            self._calls.setdefault(layer.weight, []).append(layer)
        self._tails = {weight: tuple(tail_of(graph, x) for x in calls) for weight, calls in self._calls.items()}
        self._direct: dict[str, list[str]] = {}
        self._recurrent: set[str] = set()
        for weight, calls in self._calls.items():
            if len(calls) > 1 and weight in self._needed([weight]):
                self._recurrent.add(weight)
        self._started: set[str] = set()
        self._finished: set[str] = set()
        self.turns: list[Turn] = []
        for weight in self._calls:
            self._process(weight)

    def _above(self, nodes: list[Node]) -> list[str]:
        """The layers with a call that some nodes depend on."""
        above = ancestors(nodes)
        return [weight for weight, calls in self._calls.items() if any(call.node in above for call in calls)]

    def _before(self, weight: str) -> list[str]:
        """The layers that a layer's inputs depend on without a refitted layer in between that is called again."""
        if weight in self._recurrent:
            return []
        if weight not in self._direct:
            self._direct[weight] = self._above([call.input for call in self._calls[weight]])
        return self._direct[weight]

    def _needed(self, weights: list[str]) -> set[str]:
        """The layers that must be refitted before some layers, and before those in turn."""
        found: set[str] = set()
        waiting = list(weights)
        while waiting:
            new = [weight for weight in self._before(waiting.pop()) if weight not in found]
            found.update(new)
            waiting += new
        return found

    def _process(self, weight: str) -> None:
        if weight in self._started:
            return
        self._started.add(weight)
        calls, tails = self._calls[weight], self._tails[weight]
        recurrent, residual = weight in self._recurrent, False
        if len(calls) > 1:
            for other in self._before(weight):
                self._process(other)
        if not recurrent and all(tail.total is not None and tail.other is not None for tail in tails):
            residual = self._with_shortcut(weight)
        self._finished.add(weight)
        self.turns.append(Turn(tuple(calls), tails, residual, recurrent))

    def _with_shortcut(self, weight: str) -> bool:
        """Whether a layer takes the residual target, once all layers above its shortcuts are refitted."""
        tails = self._tails[weight]
        above = self._above([tail.other for tail in tails if tail.other is not None])
        first = [other for other in above if other not in self._finished]
        totals = {tail.total for tail in tails}
        rivals = [other for other in first if not totals.isdisjoint(tail.total for tail in self._tails[other])]
        if any(self._calls[rival][0].features > self._calls[weight][0].features for rival in rivals):
            return False
        if self._several_calls and (weight in first or weight in self._needed(first)):
            return False
        for other in first:
            self._process(other)
        return self._finished.issuperset(first)

    @property
    def _several_calls(self) -> bool:
        return any(len(calls) > 1 for calls in self._calls.values())
