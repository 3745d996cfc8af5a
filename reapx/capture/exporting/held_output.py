"""What torch.export prints and logs while it traces: held back, and logged at level DEBUG where it fails."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from threading import get_ident
from typing import TextIO

LOG = logging.getLogger("reapx")


class HeldOutput:
    """Standard error, and PyTorch's log records, of one thread; those of other threads pass.

    Attributes:
        printed: What was printed.
        records: The log records, each with the handler that would have written it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.printed = StringIO()
        self.records: list[tuple[logging.Handler, logging.LogRecord]] = []
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

    def filter_of(self, handler: logging.Handler) -> Callable[[logging.LogRecord], bool]:
        """A filter of a handler's records, which holds back those of this thread."""

        def passes(record: logging.LogRecord) -> bool:
            own = record.thread == self._thread
            if own:
                self.records.append((handler, record))
            return not own

        return passes

    def text(self) -> str:
        """All that was held back; empty where nothing was."""
        return "\n".join([*(record.getMessage() for _, record in self.records), self.printed.getvalue()]).strip()


@contextmanager
def held_output() -> Iterator[HeldOutput]:
    """Hold back what torch.export prints and logs in this thread: shown at the end, or logged at DEBUG on an error.

    torch.export prints the whole graph that it has traced before it raises an error, thousands of lines of it.
    """
    stream = sys.stderr
    held = HeldOutput(stream)
    filters = [(handler, held.filter_of(handler)) for handler in _handlers()]
    for handler, passes in filters:
        handler.addFilter(passes)
    sys.stderr = held
    failed = True
    try:
        yield held
        failed = False
    finally:
        sys.stderr = stream
        for handler, passes in filters:
            handler.removeFilter(passes)
        if failed:
            LOG.debug("torch.export printed:\n%s", held.text())
        else:
            for handler, record in held.records:
                handler.handle(record)
            stream.write(held.printed.getvalue())


def _handlers() -> set[logging.Handler]:
    """The handlers of PyTorch's loggers that write to standard error."""
    loggers = logging.root.manager.loggerDict.items()
    own = [logger for name, logger in loggers if name.partition(".")[0] == "torch"]
    found = {handler for logger in own if isinstance(logger, logging.Logger) for handler in logger.handlers}
    return {handler for handler in found if type(handler) is logging.StreamHandler}
