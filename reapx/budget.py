"""Budgets, and what a network costs at given widths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from .errors import BudgetError
from .graph import Graph
from .groups import Channels, Group, Place


@dataclass(frozen=True)
class Budget:
    """What the pruned network may cost: a fraction of the original (up to 1), or an absolute number."""

    amount: float

    def __post_init__(self) -> None:
        if not (isinstance(self.amount, Real) and not isinstance(self.amount, bool) and 0 < self.amount < math.inf):
            raise BudgetError(
                f"{type(self).__name__}({self.amount!r}): give a fraction between 0 and 1, such as 0.5, or an "
                "absolute number above 1"
            )

    def limit(self, full: int) -> int:
        """The budget as an absolute number, given the cost of the full network."""
        return int(self.amount * full + 1e-9) if self.amount <= 1 else int(self.amount)


class MACs(Budget):
    """Multiply-accumulates per image of all convolutions and linear layers whose weights are stored tensors."""


class Params(Budget):
    """Number of parameters (buffers such as running means do not count)."""


class Costs:
    """MACs and parameters of a network as functions of the groups' kept widths."""

    def __init__(self, graph: Graph, channels: Channels) -> None:
        self._shapes = {name: tuple(tensor.shape) for name, tensor in graph.tensors.items()}
        self._layers = [(layer.weight, layer.positions) for layer in channels.layers]
        self._trained = graph.trained
        self._places: dict[Place, list[tuple[Group, int]]] = {}
        for group in channels.groups:
            for place, where in group.cuts.items():
                self._places.setdefault(place, []).append((group, where.shape[1]))
        self.full = {group.name: group.size for group in channels.groups}

    def shape(self, name: str, widths: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of a parameter when each group keeps ``widths[group]`` units."""
        shape = list(self._shapes[name])
        for axis in range(len(shape)):
            for group, count in self._places.get((name, axis), ()):
                shape[axis] -= (group.size - widths[group.name]) * count
        return tuple(shape)

    def macs(self, widths: Mapping[str, int] | None = None) -> int:
        """Multiply-accumulates per image."""
        kept = self.full if widths is None else widths
        return sum(math.prod(self.shape(w, kept)) * positions for w, positions in self._layers)

    def params(self, widths: Mapping[str, int] | None = None) -> int:
        """Number of parameters."""
        kept = self.full if widths is None else widths
        return sum(math.prod(self.shape(name, kept)) for name in self._trained)

    def of(self, budget: Budget, widths: Mapping[str, int] | None = None) -> int:
        """The cost that a budget counts."""
        return self.params(widths) if isinstance(budget, Params) else self.macs(widths)
