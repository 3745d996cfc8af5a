"""Budgets, and the cost of a network as a function of its widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from ..capture.graph import Graph
from ..errors import BudgetError
from ..groups.channel_groups import ChannelAnalysis, Group, ParameterAxis
from .other_macs import other_macs

AxisSizes = Sequence[Any]
"""Sizes of a tensor's axes. They are numbers, or arrays of numbers to compute the costs of many widths at once."""

Cost = Callable[[AxisSizes], Any]
"""Cost of a layer or parameter, given the sizes of its tensor's axes; arrays give an array."""


@dataclass(frozen=True)
class Budget:
    """Largest cost of the pruned network.

    Args:
        amount: Up to 1 a fraction of the original network's cost, above 1 an absolute number.

    Raises:
        BudgetError: ``amount`` is not a positive finite number.
    """

    amount: float

    unit = ""
    """Unit of absolute numbers."""

    def __post_init__(self) -> None:
        if not (isinstance(self.amount, Real) and not isinstance(self.amount, bool) and 0 < self.amount < math.inf):
            raise BudgetError(
                f"{type(self).__name__}({self.amount!r}): give a fraction between 0 and 1, such as 0.5, or an "
                "absolute number above 1"
            )

    def limit(self, full: float) -> float:
        """The budget as an absolute number, given the cost of the full network."""
        return int(self.amount * full + 1e-9) if self.amount <= 1 else int(self.amount)


class MACs(Budget):
    """Budget in multiply-accumulates per image, over all convolutions, linear layers and matrix products.

    They are half of the FLOPs that ``torch.utils.flop_counter`` counts.

    Args:
        amount: Up to 1 a fraction of the original network's MACs, above 1 an absolute number.

    Raises:
        BudgetError: ``amount`` is not a positive finite number.
    """


class Params(Budget):
    """Budget in parameters, without buffers such as running means. Tied parameters count once.

    Args:
        amount: Up to 1 a fraction of the original network's parameters, above 1 an absolute number.

    Raises:
        BudgetError: ``amount`` is not a positive finite number.
    """


class Size(Budget):
    """Budget in bytes of the parameters, in their own dtypes. Tied parameters count once.

    Args:
        amount: Up to 1 a fraction of the original network's bytes, above 1 a number of bytes.

    Raises:
        BudgetError: ``amount`` is not a positive finite number.
    """

    unit = "bytes"


def _product(factor: int, sizes: AxisSizes) -> Any:
    return math.prod(sizes, start=factor)


class Costs:
    """Cost of a network as a function of the groups' kept widths.

    At width 0 a layer without inputs or outputs costs no MACs and has no weights. The constant that replaces it is
    counted as the bias and the norm that were there. The number of parameters is therefore too large where the constant
    replaces both, and too small, by one for each output, where there was neither.
    """

    def __init__(self, graph: Graph, channels: ChannelAnalysis) -> None:
        self._shapes = {name: tuple(tensor.shape) for name, tensor in graph.tensors.items()}
        self._owners: dict[ParameterAxis, list[tuple[Group, int]]] = {}
        for group in channels.groups:
            for key, where in group.cuts.items():
                self._owners.setdefault(key, []).append((group, where.shape[1]))
        self.full = {group.name: group.size for group in channels.groups}
        others = self._others(graph, channels)
        once = [name for name in sorted(graph.trained) if name == min(graph.tied.get(name, [name]))]
        self._terms: dict[type[Budget], list[tuple[str, Cost]]] = {
            MACs: [
                *[(layer.weight, partial(_product, layer.positions)) for layer in channels.layers],
                *others,
            ],
            Params: [(name, partial(_product, 1)) for name in once],
            Size: [(name, partial(_product, graph.tensors[name].element_size())) for name in once],
        }
        self._measured: dict[type[Budget], Budget] = {}
        self._terms_of_group: dict[tuple[type[Budget], str], list[tuple[str, Cost]]] = {}

    def _others(self, graph: Graph, channels: ChannelAnalysis) -> list[tuple[str, Cost]]:
        """MACs of operators that are no layers: of attention for each head, of all others at every width the same."""
        terms: list[tuple[str, Cost]] = []
        for node, title, count in other_macs(graph, [layer.node for layer in channels.layers]):
            owners = [(group, group.attention[node]) for group in channels.groups if node in group.attention]
            name = f"{title} {node.name}" if owners else title
            heads = graph.shape(node)[-3] if owners else 1
            self._shapes[name] = (heads,) if owners else ()
            if owners:
                self._owners[name, 0] = owners
            terms.append((name, partial(_product, count // heads)))
        return terms

    def use(self, budget: Budget, terms: list[tuple[str, Cost]]) -> None:
        """Set the costs that a kind of budget counts.

        Args:
            budget: Costs hold for budgets of its type and options, whatever their amounts.
            terms: (qualified name of a tensor, its cost).
        """
        self._terms[type(budget)] = terms
        self._measured[type(budget)] = budget
        self._terms_of_group.clear()

    def knows(self, budget: Budget) -> bool:
        """Whether the costs that a budget counts are known."""
        given = self._measured.get(type(budget))
        return type(budget) in self._terms and given in (None, replace(budget, amount=given.amount if given else 1))

    def _sizes(self, name: str, widths: Mapping[str, Any]) -> list[Any]:
        sizes: list[Any] = list(self._shapes[name])
        for axis in range(len(sizes)):
            for group, count in self._owners.get((name, axis), ()):
                sizes[axis] = sizes[axis] - (group.size - widths[group.name]) * count
        return sizes

    def shape(self, name: str, widths: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of a parameter when each group keeps ``widths[group]`` units."""
        return tuple(self._sizes(name, widths))

    def of(self, budget: type[Budget], widths: Mapping[str, int] | None = None) -> Any:
        """The network's cost.

        Args:
            budget: Type of the budget, which says what counts.
            widths: Group name -> kept units; None for the full network.
        """
        kept = self.full if widths is None else widths
        return sum(cost(self._sizes(name, kept)) for name, cost in self._terms[budget])

    def shares(self, budget: type[Budget], widths: Mapping[str, int]) -> list[tuple[str, float]]:
        """What each layer costs, or operator that is none, as a share of the whole; the largest first."""
        found: dict[str, float] = {}
        for name, cost in self._terms[budget]:
            layer = name.removesuffix(".weight").removesuffix(".bias")
            found[layer] = found.get(layer, 0) + float(cost(self._sizes(name, widths)))
        total = sum(found.values()) or 1.0
        return sorted(((name, value / total) for name, value in found.items()), key=lambda item: -item[1])

    def along(self, budget: type[Budget], group: str, widths: Mapping[str, int]) -> npt.NDArray[np.float64]:
        """Cost of all tensors that one group's width changes, at its widths 0, 1, ..., size.

        Args:
            budget: Type of the budget, which says what counts.
            group: Name of the group.
            widths: Group name -> kept units of the other groups.

        Returns:
            (size + 1,) float64. Differences between entries are differences of the whole network's cost.
        """
        key = (budget, group)
        if key not in self._terms_of_group:
            touched = {
                name
                for (name, _), members in self._owners.items()
                if any(member.name == group for member, _ in members)
            }
            self._terms_of_group[key] = [(name, cost) for name, cost in self._terms[budget] if name in touched]
        varied: dict[str, Any] = dict(widths)
        varied[group] = np.arange(self.full[group] + 1, dtype=np.float64)
        total = np.zeros(self.full[group] + 1)
        for name, cost in self._terms_of_group[key]:
            total += cost(self._sizes(name, varied))
        return total

    def partners(self) -> dict[str, set[str]]:
        """Group name -> the groups, including itself, that share a tensor with it: their widths change its savings."""
        members: dict[str, set[str]] = {}
        for (name, _), found in self._owners.items():
            members.setdefault(name, set()).update(group.name for group, _ in found)
        partners: dict[str, set[str]] = {name: {name} for name in self.full}
        for together in members.values():
            for name in together:
                partners[name] |= together
        return partners

    def macs(self, widths: Mapping[str, int] | None = None) -> int:
        """Multiply-accumulates per image."""
        return int(self.of(MACs, widths))

    def params(self, widths: Mapping[str, int] | None = None) -> int:
        """Number of parameters."""
        return int(self.of(Params, widths))
