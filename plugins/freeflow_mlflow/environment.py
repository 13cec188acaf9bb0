"""MLflow reads its timeouts, telemetry and verbosity from the process's environment; nothing else reaches them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_QUIET: ContextVar[bool] = ContextVar("freeflow_mlflow_quiet", default=False)
_CHATTY = ("mlflow.store.db.utils", "alembic.runtime.migration", "urllib3.connectionpool")


def prepare_environment(timeout_seconds: int, retries: int, telemetry: bool) -> None:
    """Set what the user has not set. Must run before mlflow is imported: telemetry starts at its import.

    MLflow's own defaults let a dead server hold a call for four minutes.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(timeout_seconds))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(retries))
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if not telemetry:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ["DO_NOT_TRACK"] = "true"


class _Quiet(logging.Filter):
    """Drops records below ERROR that come from inside :func:`quiet`; other users of the same loggers keep theirs."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not _QUIET.get()


_FILTER = _Quiet()


@contextmanager
def quiet() -> Iterator[None]:
    """No reports of created tables and repeated requests from this thread: the tracker says what matters itself."""
    for name in _CHATTY:
        logging.getLogger(name).addFilter(_FILTER)
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)
