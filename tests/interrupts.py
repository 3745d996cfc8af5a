"""Interrupting reapx at any of its lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def at_line(number: int, then: Callable[[], object], file: str = "") -> Iterator[list[int]]:
    """Call ``then`` before a line of reapx, or of one of its files, runs; the list holds how many have run, from 1."""
    count = [0]

    def trace(frame: FrameType, event: str, _: object) -> object:
        name = frame.f_code.co_filename
        if f"{os.sep}reapx{os.sep}" not in name or not name.endswith(file):
            return None
        if event == "line":
            count[0] += 1
            if count[0] == number:
                then()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        yield count
    finally:
        sys.settrace(before)
