"""Many runs over the same parts: what the parts say about themselves is said by the first run alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final


@final
class _SaidOnce(logging.Filter):
    """Drops information that was given before, word for word; warnings pass."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        again = record.levelno <= logging.INFO and text in self._said
        self._said.add(text)
        return not again


@contextmanager
def said_once() -> Iterator[None]:
    """No repeated information from freeflow's logger inside."""
    logger, own = logging.getLogger("freeflow"), _SaidOnce()
    logger.addFilter(own)
    try:
        yield
    finally:
        logger.removeFilter(own)
