"""Progress of long steps: bars on the terminal, a call of the user's own, and lines in the log.

The log is ``logging.getLogger("reapx")``: each step and its time, at level INFO.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

OnProgress = Callable[[str, int, int], object]
"""``(step, done, total)``: the name of a step, and how much of it is done, from 0 to ``total``."""

LOG = logging.getLogger("reapx")


@dataclass(frozen=True)
class Progress:
    """Who is told how far a step is.

    Attributes:
        bars: Whether bars are shown on the terminal.
        call: What else is called, or None.
    """

    bars: bool
    call: OnProgress | None = None

    def over(
        self, items: Collection[Item], step: str, *, unit: str = "batch", done: int = 0, total: int | None = None
    ) -> Iterator[Item]:
        """The items one by one, while progress is told.

        Args:
            items: What is still to do.
            step: Name of the step, as it is shown.
            unit: What an item is.
            done: How many were done before, by another run.
            total: How many there are in all; those in ``items`` by default.
        """
        total = done + len(items) if total is None else total
        if self.call is not None:
            self.call(step, done, total)
        with timed(f"{step}, {len(items)} of {total} x {unit}"):
            bar = tqdm(items, step, total=total, initial=done, unit=unit, leave=False, disable=not self.bars)
            for count, item in enumerate(bar, done + 1):
                yield item
                if self.call is not None:
                    self.call(step, count, total)


SILENT = Progress(False)


def progress_of(progress: bool | None, on_progress: OnProgress | None = None, *, told: bool = True) -> Progress:
    """What the arguments of the same names ask for.

    Args:
        progress: None shows bars where the terminal does, unless there is a call.
        on_progress: Called with each step, or None.
        told: Whether this process tells anything: of several, one does.
    """
    if not told:
        return SILENT
    bars = on_progress is None and sys.stderr.isatty() if progress is None else progress
    return Progress(bars, on_progress)


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Log how long the block took, once it has ended well."""
    start = time.perf_counter()
    yield
    LOG.info("%s: %.2f s", step, time.perf_counter() - start)
