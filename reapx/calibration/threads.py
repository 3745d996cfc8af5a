"""Threads that prune networks side by side: torch.export changes the whole process while it traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Turns:
    """What many threads may do at once, and what one does alone, while the others wait.

    While torch.export runs in one thread, operators and modules that other threads call go other ways: most fail, and
    some only round otherwise.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._together = 0
        self._waiting = 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run while no other thread is in :meth:`alone`; not again within itself."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting == 0)
            self._together += 1
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                if self._together == 0:
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run while no other thread is in :meth:`together` or :meth:`alone`."""
        with self._changed:  # held to the end, which keeps all others out
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._together == 0)
            finally:
                self._waiting -= 1
            try:
                yield
            finally:
                self._changed.notify_all()


TURNS = Turns()
"""Operators and modules of the user run together, torch.export alone."""
