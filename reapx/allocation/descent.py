"""The descent from the full network: each step prunes the group with the least added error per saved cost."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..costs.budget import Budget, Costs
from ..groups.channel_groups import Group
from .allowed_widths import AllowedWidths
from .curves import ErrorCurve


@dataclass(frozen=True)
class TradeoffPoint:
    """One point of the trade-off between cost and error.

    Attributes:
        cost: Cost of the network in the budget's unit.
        share: ``cost`` as a share of the original network's cost.
        error: Sum of the errors at the outputs, each measured with one group pruned alone. It ranks budgets. The
            pruned network's own error is smaller, since the sweep of ``Plan.apply`` repairs much of it.
        widths: Group name -> kept units.
    """

    cost: float
    share: float
    error: float
    widths: dict[str, int]


def within(costs: Costs, widths: Mapping[str, int], limits: Mapping[type[Budget], float]) -> bool:
    """Whether a network of these widths costs at most what all limits allow."""
    return all(float(costs.of(kind, widths)) <= limit for kind, limit in limits.items())


def idle_without(groups: Sequence[Group], costs: Costs) -> dict[str, set[str]]:
    """Group name -> groups that have no effect once it is removed.

    These are the groups that feed only this one, and the groups whose producers read only this one: the channels of the
    latter are then constant.
    """
    producers = {layer.weight: group for group in groups for layer in group.producers}
    found: dict[str, set[str]] = {}
    for group in groups:
        layers = [consumer.layer for consumer in group.consumers]
        fed = {producers[layer.weight].name: producers[layer.weight] for layer in layers if layer.weight in producers}
        if len(fed) != 1 or any(layer.weight not in producers for layer in layers):
            continue
        (behind,) = fed.values()
        found.setdefault(behind.name, set()).add(group.name)
        gone = {**costs.full, group.name: 0}
        axes = {layer.weight: layer.in_axis for layer in layers}
        if all(x.weight in axes and costs.shape(x.weight, gone)[axes[x.weight]] == 0 for x in behind.producers):
            found.setdefault(group.name, set()).add(behind.name)
    return found


class Descent:
    """Widths that shrink step by step along the lower convex hulls of the groups' errors over their savings.

    A group's next step goes to the allowed width with the smallest added error per saved cost, which is the next corner
    of its lower convex hull. Savings hold at the other groups' present widths, so a step changes the savings of every
    group that shares a layer with the moved one.

    Example: groups a and b may both have widths 0, 2 and 4, and ``idle = {"a": {"b"}}``: b feeds only a. A step
    ``_move("a", 2)`` changes ``cost`` and ``widths["a"]``, and updates the next steps of a and of its partner b. Then
    ``_move("a", 0)`` removes a as a whole, and b has no effect any more: b's error curve becomes flat at its present
    value, b's next step is updated, and a recursive ``_move("b", 0)`` takes b to its smallest allowed width. This one
    call changes the cost, both widths, b's curve and the next steps of both.

    Source: K. Kamma, S. Inoue and T. Wada, "Pruning Ratio Optimization with Layer-Wise Pruning Method for Accelerating
    Convolutional Neural Networks", IEICE Trans. Inf. & Syst. E105-D(1), 2022; there with savings of the full network.

    Attributes:
        widths: Group name -> present width.
        cost: Cost of the network at these widths.
    """

    def __init__(
        self,
        costs: Costs,
        kind: type[Budget],
        curves: Mapping[str, ErrorCurve],
        allowed: AllowedWidths,
        widths: Mapping[str, int],
        idle: Mapping[str, set[str]] | None = None,
    ) -> None:
        self._costs, self._kind, self._allowed, self._idle = costs, kind, allowed, idle or {}
        self._errors = {name: curve.by_width for name, curve in curves.items()}
        self._partners = costs.partners()
        self.widths = dict(widths)
        self.cost = float(costs.of(kind, widths))
        for name, width in self.widths.items():
            self._end(name, width)
        self._next = {name: self._best(name) for name in allowed}

    @property
    def error(self) -> float:
        """Sum of the groups' errors at the present widths."""
        return float(sum(errors[self.widths[name]] for name, errors in self._errors.items()))

    def _best(self, name: str) -> tuple[float, int, float] | None:
        """(error per saving, width, saving) of a group's next step; None where no allowed width saves anything."""
        width = self.widths[name]
        below = self._allowed[name][: bisect_left(self._allowed[name], width)]
        if len(below) == 0:
            return None
        cost, error = self._costs.along(self._kind, name, self.widths), self._errors[name]
        saved = cost[width] - cost[below]
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.where(saved > 0, np.maximum(error[below] - error[width], 0.0) / saved, np.inf)
        best = int(np.argmin(slopes))
        return None if not np.isfinite(slopes[best]) else (float(slopes[best]), int(below[best]), float(saved[best]))

    def step(self, limit: float = 0.0) -> bool:
        """Take the step with the least error per saving, but no further below ``limit`` than needed.

        Returns:
            False where no group can shrink further.
        """
        steps = [(found, name) for name, found in self._next.items() if found is not None]
        if not steps:
            return False
        (_, width, saved), name = min(steps)
        if self.cost - saved < limit:
            width = self._least_cut(name, width, limit)
        self._move(name, width)
        return True

    def _least_cut(self, name: str, lowest: int, limit: float) -> int:
        """The largest width of a group, not below ``lowest``, that brings the cost to the limit."""
        cost = self._costs.along(self._kind, name, self.widths)
        present = self.widths[name]
        fitting = [w for w in self._between(name, lowest, present) if self.cost - (cost[present] - cost[w]) <= limit]
        return max(fitting, default=lowest)

    def _between(self, name: str, lowest: int, highest: int) -> list[int]:
        return [int(width) for width in self._allowed[name] if lowest <= width < highest]

    def _move(self, name: str, width: int) -> None:
        """Set one group's width and update all that depends on it; the class docstring has an example.

        The cost changes, idle groups get flat error curves, the next steps of all affected groups are updated, and idle
        groups move to their smallest allowed widths.
        """
        cost = self._costs.along(self._kind, name, self.widths)
        self.cost += float(cost[width] - cost[self.widths[name]])
        self.widths[name] = width
        idle = self._end(name, width)
        for other in self._partners[name] | idle:
            if other in self._next:
                self._next[other] = self._best(other)
        for other in idle & set(self._allowed):
            if self._allowed[other][0] < self.widths[other]:
                self._move(other, int(self._allowed[other][0]))

    def _end(self, name: str, width: int) -> set[str]:
        """The groups that are idle at this width. Their error curves become flat: pruning them adds no error."""
        idle = self._idle.get(name, set()) if width == 0 else set()
        for other in idle:
            if other in self._errors:
                self._errors[other] = np.full_like(self._errors[other], self._errors[other][self.widths[other]])
        return idle

    def give_back(self, limit: float, others: Mapping[type[Budget], float] | None = None) -> None:
        """Grow groups until the budget is used up to the last width that fits.

        Each step grows the group with the largest error reduction per added cost. Idle groups do not grow.

        Args:
            limit: Largest cost.
            others: Largest costs of other kinds.
        """
        others = others or {}
        while True:
            gains = []
            done = set().union(*(others for name, others in self._idle.items() if self.widths[name] == 0))
            for name, allowed in self._allowed.items():
                width = self.widths[name]
                if name in done:
                    continue
                wider = allowed[np.searchsorted(allowed, width, side="right") :]
                if len(wider) == 0:
                    continue
                cost, error = self._costs.along(self._kind, name, self.widths), self._errors[name]
                added = cost[wider[0]] - cost[width]
                grown = {**self.widths, name: int(wider[0])}
                if self.cost + added <= limit and within(self._costs, grown, others):
                    gains.append(((error[width] - error[wider[0]]) / max(added, 1e-300), name, int(wider[0])))
            if not gains:
                return
            _, name, width = max(gains)
            self._move(name, width)
