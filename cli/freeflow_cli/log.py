"""What the engine and plugins log or warn about becomes a line on stderr."""

from __future__ import annotations

import logging
import warnings
from typing import Any, final

from freeflow_cli.console import is_main_process, say, warn

LOGGER = "freeflow"


@final
class MessageHandler(logging.Handler):
    """Information as it is, warnings and errors as warning lines; the main process alone speaks."""

    def emit(self, record: logging.LogRecord) -> None:
        if not is_main_process():
            return
        text = " ".join(record.getMessage().split())
        if record.levelno >= logging.WARNING:
            warn(text)
        else:
            say(text)


def show_log() -> None:
    """Attach the handler once; for the process's entry point only.

    Warnings meant for users become lines too. Those meant for developers (deprecations in libraries) stay silent
    unless Python is asked for them with ``-W`` or ``PYTHONWARNINGS``.
    """
    warnings.showwarning = _show_warning
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(handler, MessageHandler) for handler in logger.handlers):
        logger.addHandler(MessageHandler())
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    if issubclass(category, UserWarning) and is_main_process():
        warn(" ".join(str(message).split()))
