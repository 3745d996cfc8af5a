"""What torch.export prints and logs while it traces: held back, and logged at level DEBUG where it fails."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from threading import get_ident
from typing import TextIO

LOG = logging.getLogger("reapx")


class HeldOutput:
    """Standard error, and PyTorch's log records, of one thread; those of other threads pass.

    Attributes:
        printed: What was printed.
        records: The log records.
    """

    def __init__(self, stream: TextIO) -> None:
        self.printed = StringIO()
        self.records: list[logging.LogRecord] = []
        self._stream = stream
        self._thread = get_ident()

    def write(self, text: str) -> int:
        """As for a file."""
        return (self.printed if get_ident() == self._thread else self._stream).write(text)

    def flush(self) -> None:
        """As for a file."""
        self._stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def filter(self, record: logging.LogRecord) -> bool:
        """As for a filter of log records: hold back those of this thread."""
        own = record.thread == self._thread
        if own:
            self.records.append(record)
        return not own

    def text(self) -> str:
        """All that was held back; empty where nothing was."""
        return "\n".join([*(record.getMessage() for record in self.records), self.printed.getvalue()]).strip()


@contextmanager
def held_output() -> Iterator[HeldOutput]:
    """Hold back what torch.export prints and logs in this thread: shown at the end, or logged at DEBUG on an error.

    torch.export prints the whole graph that it has traced before it raises an error, thousands of lines of it.
    """
    stream = sys.stderr
    held = HeldOutput(stream)
    handlers = _handlers()
    for handler in handlers:
        handler.addFilter(held.filter)
    sys.stderr = held
    failed = True
    try:
        yield held
        failed = False
    finally:
        sys.stderr = stream
        for handler in handlers:
            handler.removeFilter(held.filter)
        if failed:
            LOG.debug("torch.export printed:\n%s", held.text())
        else:
            for record in held.records:
                logging.getLogger(record.name).handle(record)
            stream.write(held.printed.getvalue())


def _handlers() -> set[logging.Handler]:
    """All handlers of PyTorch's loggers."""
    loggers = logging.root.manager.loggerDict.items()
    own = [logger for name, logger in loggers if name.partition(".")[0] == "torch"]
    return {handler for logger in own if isinstance(logger, logging.Logger) for handler in logger.handlers}
