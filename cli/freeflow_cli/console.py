"""Everything that is printed: results on stdout, what is said on the way on stderr; numbers, times, paths, tables."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.table import Table
from rich.text import Text

from freeflow_cli.tables import score_legend, score_tables

if TYPE_CHECKING:
    from freeflow_core.api import RunResult
    from freeflow_core.config import RunConfig
    from freeflow_core.types import Check

PLAIN_WIDTH = 100
"""Columns of tables that go to a file or a pipe."""
ERROR_STYLE = "bold red"
STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


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
    if not isinstance(sys.stderr, FileProxy):
        print_paragraph(console, text, title=title, style=style)
        return
    with console.capture() as captured:
        print_paragraph(console, text, title=title, style=style)
    sys.stderr.write(captured.get())  # a bar is drawn there: above it, not into it


def print_paragraph(console: Console, text: str, *, title: str = "", style: str = "") -> None:
    """Broken between words on a terminal; a path longer than its lines stays whole, so that it can be copied."""
    head = f"{title}: " if title else ""
    whole = head + text
    if console.is_terminal:
        lines = [
            textwrap.wrap(line, console.width, break_long_words=False, break_on_hyphens=False)
            for line in whole.split("\n")
        ]
        whole = "\n".join("\n".join(line) for line in lines)
    paragraph = Text(whole)
    paragraph.stylize(style, 0, len(head))
    console.print(paragraph, soft_wrap=True, highlight=False)


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


def print_result(result: RunResult, command: str, config: RunConfig | None) -> None:
    """Scores, files and next commands on stdout; silent on all but the main process."""
    if not is_main_process():
        return
    console = stdout()
    if result.scores:
        evaluation = config.evaluation if config else None
        for table in score_tables(result.scores, evaluation=evaluation, width=console.width):
            console.print(table)
        if legend := score_legend(result.scores):
            console.print(Text(legend, style="dim"), soft_wrap=not console.is_terminal)
    if result.load_report:
        print_paragraph(console, f"Started from the teacher: {result.load_report}")
    cost = f", {size(result.peak_memory_bytes)} of memory at most" if result.peak_memory_bytes else ""
    print_line(f"{result.status.capitalize()} after {clock(result.duration_seconds)}{cost}.")
    print_files(result.files)
    print_next(next_commands(result, command, config))


def next_commands(result: RunResult, command: str, config: RunConfig | None) -> list[str]:
    """What one would do after this run."""
    folder = shlex.quote(shown_path(result.folder))
    commands = []
    if result.status != "finished":
        commands.append(f"freeflow {command} --resume --output {folder} --set training.stop_at_images=null")
    if command == "evaluate":
        return commands
    commands.append(f"freeflow sample --run {folder}")
    if not result.scores:
        commands.append(f"freeflow evaluate --run {folder}")
    trackers = [choice.model_dump() for choice in config.trackers] if config else []
    if any(tracker["name"] == "mlflow" and tracker.get("uri") is None for tracker in trackers):
        commands += mlflow_commands(result.folder)
    return commands


def mlflow_commands(folder: Path) -> list[str]:
    """MLflow's view of the runs, where its store lies beside ``folder``, as it does unless another one is named."""
    database = folder.resolve().parent / "mlflow.db"
    if os.environ.get("MLFLOW_TRACKING_URI") or not database.is_file():
        return []
    return [f"mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{database.as_posix()}')}"]


def print_checks(checks: Sequence[Check]) -> None:
    """One line a finding: status, name, detail."""
    print_columns([(Text(c.status, style=STYLES[c.status]), Text(c.name), Text(c.detail)) for c in checks])


def print_json(values: object) -> None:
    """JSON on stdout; dataclasses become mappings, paths text."""
    typer.echo(json.dumps(values, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
