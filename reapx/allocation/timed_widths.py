"""Widths that meet a latency budget by measurement: proposed by the prediction, timed, corrected, and timed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..costs.latency import Latency
from ..errors import BudgetError

ROUNDS = 8
"""Largest number of networks that are timed for one budget."""
CLOSE = 0.97
"""Share of the budget from which a measured time is close enough."""
TARGET = 0.985
"""Share of the budget that corrections aim at, the middle of what is close enough."""

Widths = Mapping[str, int]


@dataclass(frozen=True)
class TimedWidths:
    """Widths whose network was timed.

    Attributes:
        limit: Predicted milliseconds that proposed them.
        milliseconds: Measured milliseconds, at the speed at which the original was measured first.
    """

    limit: float
    milliseconds: float


def timed_limit(
    budget: Latency,
    allowed: float,
    ends: tuple[float, float],
    propose: Callable[[float], Widths],
    measure: Callable[[Widths], float],
) -> TimedWidths:
    """The predicted milliseconds to ask for, so that the measured ones meet a budget.

    The prediction is wrong by a factor that changes slowly with the widths, so the first correction divides by this
    factor. Later ones follow the line through two networks: the latest two, or, as soon as one was too slow and another
    fast enough, the closest of both sides, between which the next limit then lies.

    Args:
        budget: For the error text.
        allowed: Milliseconds that the budget allows.
        ends: Predicted milliseconds of the smallest and the largest allowed widths.
        propose: Predicted milliseconds, between the ends -> widths that take no more.
        measure: Widths -> measured milliseconds of their network.

    Returns:
        The slowest of the timed networks that meet the budget.

    Raises:
        BudgetError: the network of the smallest allowed widths takes longer than the budget.
    """
    seen: dict[tuple[tuple[str, int], ...], float] = {}

    def timed(limit: float) -> TimedWidths:
        widths = propose(limit)
        key = tuple(sorted(widths.items()))
        if key not in seen:
            seen[key] = measure(widths)
        return TimedWidths(limit, seen[key])

    slow: TimedWidths | None = None
    fast: TimedWidths | None = None
    last: TimedWidths | None = None
    limit = allowed
    for _ in range(ROUNDS):
        limit = min(max(limit, ends[0]), ends[1])
        found = timed(limit)
        if found.milliseconds > allowed:
            slow = found
        elif fast is None or found.milliseconds >= fast.milliseconds:
            fast = found
        if CLOSE * allowed <= found.milliseconds <= allowed:
            return found
        if (found is slow and limit <= ends[0]) or (found is fast and limit >= ends[1]):
            break
        limit = _next(found, last, slow, fast, TARGET * allowed)
        last = found
    if fast is None:
        fast = timed(ends[0])
        if fast.milliseconds > allowed:
            raise BudgetError(_refusal(budget, allowed, fast.milliseconds))
    return fast


def _next(
    found: TimedWidths, last: TimedWidths | None, slow: TimedWidths | None, fast: TimedWidths | None, target: float
) -> float:
    """The next predicted milliseconds to ask for."""
    if slow is not None and fast is not None and slow.limit > fast.limit:
        part = (target - fast.milliseconds) / max(slow.milliseconds - fast.milliseconds, 1e-300)
        return fast.limit + min(max(part, 0.1), 0.9) * (slow.limit - fast.limit)
    by_factor = found.limit * target / found.milliseconds
    if last is None or (last.limit - found.limit) * (last.milliseconds - found.milliseconds) <= 0:
        return by_factor
    slope = (last.milliseconds - found.milliseconds) / (last.limit - found.limit)
    return min(max(found.limit + (target - found.milliseconds) / slope, 0.1 * found.limit), 10 * found.limit)


def _refusal(budget: Latency, allowed: float, least: float) -> str:
    return (
        f"Latency({budget.amount}) allows {allowed:,.3f} ms, but the smallest allowed widths were measured at "
        f"{least:,.3f} ms {budget.where} (a batch of {budget.batch}): raise it to {least:.3f} ms or more, let residual "
        "streams take part with streams=True, lower round_to, loosen bounds, or give a larger batch"
    )
