"""Where text goes: results to stdout, everything said on the way to stderr."""

from __future__ import annotations

import os

from rich.console import Console
from rich.text import Text

PLAIN_WIDTH = 100
"""Columns of tables that go to a file or a pipe."""
ERROR_STYLE = "bold red"


def stdout() -> Console:
    """Results: tables, paths, numbers."""
    return _console(stderr=False)


def messages() -> Console:
    """Progress, warnings and errors."""
    return _console(stderr=True)


def say(text: str, *, title: str = "", style: str = "") -> None:
    """One paragraph on stderr; ``title`` stands before it, coloured. Never cut or wrapped in a pipe."""
    console = messages()
    paragraph = Text(f"{title}: " if title else "", style=style)
    paragraph.append(Text(text, style="none"))
    console.print(paragraph, soft_wrap=not console.is_terminal, highlight=False)


def warn(text: str) -> None:
    """One warning line on stderr."""
    say(text, title="Warning", style="bold yellow")


def is_main_process() -> bool:
    """False in the other processes of ``torchrun`` and ``accelerate launch``, which stay silent."""
    return os.environ.get("RANK", "0") == "0"


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PLAIN_WIDTH
    return console
