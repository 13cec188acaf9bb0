"""What the engine and plugins log under ``freeflow`` becomes a line on stderr."""

from __future__ import annotations

import logging
from typing import final

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
    """Attach the handler once; for the process's entry point only."""
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(handler, MessageHandler) for handler in logger.handlers):
        logger.addHandler(MessageHandler())
        logger.setLevel(logging.INFO)
        logger.propagate = False
