"""How far a transfer is, as lines in the log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import final

from freeflow_core.weights.text import data_size

OnProgress = Callable[[int, int | None], None]
"""``on_progress(done, total)``: bytes so far, and of the whole file where known. Called often: it should be cheap."""

TERMINAL_INTERVAL, FILE_INTERVAL = 5.0, 60.0
"""Seconds between two lines where somebody watches, and where nobody does."""
_LOG = logging.getLogger("freeflow")


@final
class LoggedProgress:
    """An :data:`OnProgress` for where no bar can be drawn: a line now and then, none for what is quickly done."""

    def __init__(self, name: str, interval: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        watched = sys.stderr is not None and sys.stderr.isatty()
        self._name = name
        self._interval = interval if interval is not None else TERMINAL_INTERVAL if watched else FILE_INTERVAL
        self._now = now
        self._began = self._last = now()
        self._first: int | None = None

    def __call__(self, done: int, total: int | None) -> None:
        now = self._now()
        if self._first is None or done < self._first:  # a transfer that began again
            self._first, self._began = done, now
        if now - self._last < self._interval:
            return
        self._last = now
        share = f" of {data_size(total)} ({done / total:.0%})" if total else ""
        speed = round((done - self._first) / max(now - self._began, 1e-9))
        _LOG.info("Weights %r: %s%s, %s/s.", self._name, data_size(done), share, data_size(speed))
