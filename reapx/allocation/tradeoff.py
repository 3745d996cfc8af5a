"""The way from the full network down: always the group whose next channels cost least error for what they save."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..budget import Budget, Costs
from .choices import Choices
from .curves import ErrorCurve


@dataclass(frozen=True)
class TradeoffPoint:
    """One point of the trade-off.

    Attributes:
        cost: In the budget's unit.
        share: ``cost`` as a share of the original's.
        error: Predicted error at the network's outputs: the sum of the groups' own.
        widths: Group name -> kept units.
    """

    cost: float
    share: float
    error: float
    widths: dict[str, int]


class Descent:
    """Steepest saving first, along the lower convex hulls of the groups' errors over their savings.

    A group's next step goes to the width, of all that it may still have, at which the added error for each saved unit
    of cost is smallest: the next corner of the lower convex hull. Savings are those at the other groups' present
    widths.

    Source: K. Kamma, S. Inoue and T. Wada, "Pruning Ratio Optimization with Layer-Wise Pruning Method for Accelerating
    Convolutional Neural Networks", IEICE Trans. Inf. & Syst. E105-D(1), 2022; there with savings of the full network.
    """

    def __init__(
        self,
        costs: Costs,
        kind: type[Budget],
        curves: Mapping[str, ErrorCurve],
        choices: Choices,
        widths: Mapping[str, int],
    ) -> None:
        self._costs, self._kind, self._choices = costs, kind, choices
        self._errors = {name: curve.by_width for name, curve in curves.items()}
        self._partners = costs.partners()
        self.widths = dict(widths)
        self.cost = float(costs.of(kind, widths))
        self._next = {name: self._best(name) for name in choices}

    def _best(self, name: str) -> tuple[float, int, float] | None:
        """(error per saving, width, saving) of a group's next step; None where it has none that saves."""
        width = self.widths[name]
        below = self._choices[name][: bisect_left(self._choices[name], width)]
        if len(below) == 0:
            return None
        cost, error = self._costs.along(self._kind, name, self.widths), self._errors[name]
        saved = cost[width] - cost[below]
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.where(saved > 0, np.maximum(error[below] - error[width], 0.0) / saved, np.inf)
        best = int(np.argmin(slopes))
        return None if not np.isfinite(slopes[best]) else (float(slopes[best]), int(below[best]), float(saved[best]))

    def step(self, limit: float = 0.0) -> bool:
        """Take the steepest step, or as much of it as just reaches ``limit``; False where there is none."""
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
        return [int(width) for width in self._choices[name] if lowest <= width < highest]

    def _move(self, name: str, width: int) -> None:
        self.widths[name] = width
        self.cost = float(self._costs.of(self._kind, self.widths))
        for other in self._partners[name]:
            if other in self._next:
                self._next[other] = self._best(other)

    def give_back(self, limit: float) -> None:
        """Grow groups, the one that gains most error for its cost first, until not one more width fits."""
        while True:
            gains = []
            for name, allowed in self._choices.items():
                width = self.widths[name]
                wider = allowed[np.searchsorted(allowed, width, side="right") :]
                if len(wider) == 0:
                    continue
                cost, error = self._costs.along(self._kind, name, self.widths), self._errors[name]
                added = cost[wider[0]] - cost[width]
                if self.cost + added <= limit:
                    gains.append(((error[width] - error[wider[0]]) / max(added, 1e-300), name, int(wider[0])))
            if not gains:
                return
            _, name, width = max(gains)
            self._move(name, width)
