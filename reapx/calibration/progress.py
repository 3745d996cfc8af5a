"""Progress of long steps: bars on the terminal, calls of a user's function, and lines in the log.

``logging.getLogger("reapx")`` logs each step and its time at level INFO.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm import tqdm

from ..notebook.html import in_notebook

Item = TypeVar("Item")

OnProgress = Callable[[str, int, int], object]
"""A function ``(step, done, total)``, called with the name of a step and how much of it is done, 0 to ``total``."""

LOG = logging.getLogger("reapx")


@dataclass(frozen=True)
class Progress:
    """Where the progress of steps is shown.

    Attributes:
        bars: Whether to show bars on the terminal.
        call: Function to call with the progress, or None.
    """

    bars: bool
    call: OnProgress | None = None

    def over(
        self, items: Collection[Item], step: str, *, unit: str = "batch", done: int = 0, total: int | None = None
    ) -> Iterator[Item]:
        """Iterate over items, and show the progress after each.

        Args:
            items: Items of the step that are not done yet.
            step: Name of the step.
            unit: Name of an item.
            done: Number of items that an interrupted call has done.
            total: Number of all items; by default ``done`` and those in ``items``.
        """
        total = done + len(items) if total is None else total
        if self.call is not None:
            self.call(step, done, total)
        with timed(f"{step}, {len(items)} of {total} x {unit}"):
            bar = _bar_type(self.bars)(
                items, step, total=total, initial=done, unit=unit, leave=False, disable=not self.bars
            )
            for count, item in enumerate(bar, done + 1):
                yield item
                if self.call is not None:
                    self.call(step, count, total)


def _bar_type(shown: bool) -> Any:
    """tqdm's class of bars for the terminal, or, in a notebook, the one that tqdm.auto chooses."""
    if not (shown and in_notebook()):
        return tqdm
    from tqdm.auto import tqdm as notebook_bar

    return notebook_bar


SILENT = Progress(False)


def progress_of(progress: bool | None, on_progress: OnProgress | None = None, *, told: bool = True) -> Progress:
    """The progress that the public arguments of the same names ask for.

    Args:
        progress: Whether to show bars; None shows them on a terminal and in a notebook, if there is no ``on_progress``.
        on_progress: Function to call with the progress, or None.
        told: Whether this process shows progress; with several processes, only one does.
    """
    if not told:
        return SILENT
    bars = on_progress is None and (sys.stderr.isatty() or in_notebook()) if progress is None else progress
    return Progress(bars, on_progress)


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Log the time that a block took, unless it raised an error."""
    start = time.perf_counter()
    yield
    LOG.info("%s: %.2f s", step, time.perf_counter() - start)
