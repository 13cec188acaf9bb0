"""Results go to stdout, everything said on the way to stderr; numbers, times and paths as people read them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
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


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PLAIN_WIDTH
    return console


def say(text: str, *, title: str = "", style: str = "") -> None:
    """One paragraph on stderr; ``title`` stands before it, coloured. Never cut or wrapped in a pipe."""
    console = messages()
    paragraph = Text(f"{title}: " if title else "", style=style).append(Text(text, style="none"))
    console.print(paragraph, soft_wrap=not console.is_terminal, highlight=False)


def warn(text: str) -> None:
    """One warning line on stderr."""
    say(text, title="Warning", style="bold yellow")


def is_main_process() -> bool:
    """False in the other processes of ``torchrun`` and ``accelerate launch``, which stay silent."""
    return os.environ.get("RANK", "0") == "0"


def print_line(text: str) -> None:
    """One line, never wrapped, so that paths and commands can be copied."""
    stdout().print(Text(text), soft_wrap=True, highlight=False)


def print_files(files: Mapping[str, Path]) -> None:
    """Names and paths of what was written."""
    if files:
        print_line("Written:")
    for name, path in files.items():
        print_line(f"  {name:<{max(map(len, files))}}  {shown_path(path)}")


def print_next(commands: Sequence[str]) -> None:
    """Commands to try, one a line."""
    for line in ["Next:", *(f"  {command}" for command in commands)] if commands else []:
        print_line(line)


def print_columns(rows: Iterable[Sequence[Text]]) -> None:
    """Rows of equally many cells without lines between them; only the last column is folded."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    for column in table.columns[:-1]:
        column.no_wrap = True
    for column in table.columns[-1:]:
        column.overflow = "fold"
    stdout().print(table)


def make_table(columns: Iterable[Column | str], rows: Iterable[Iterable[str]] = (), **options: Any) -> Table:
    """A table with a line below its titles, as all of ours; the cells are taken as they are, without markup."""
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, **options)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def number(value: float) -> str:
    """Four significant digits; whole numbers up to a million in full, tiny and huge ones with an exponent."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def clock(seconds: float) -> str:
    """``0:07``, ``12:30``, ``3:00:05``; a dash when unknown."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(num_bytes: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def shown_path(path: Path) -> str:
    """Relative to the working folder when it lies inside it."""
    absolute = Path(os.path.abspath(path))
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
