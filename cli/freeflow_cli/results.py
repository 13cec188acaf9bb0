"""What is printed after a run: scores, findings, what was written, and what to try next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from freeflow_cli import formats
from freeflow_cli.console import is_main_process, output

if TYPE_CHECKING:
    from freeflow_core.api import RunResult
    from freeflow_core.config import EvaluationConfig, RunConfig
    from freeflow_core.types import Check


EVALUATIONS, MILLISECONDS = "evaluations", "ms_per_image"
_HEADERS = {EVALUATIONS: "evals", MILLISECONDS: "ms / image"}
_TITLE_WIDTH = 24
_GAP = 3
"""Characters between two columns, and those at the edges of the table taken together."""


def score_tables(
    scores: Mapping[str, Mapping[str, float]], *, evaluation: EvaluationConfig | None = None, width: int = 100
) -> list[Table]:
    """``scores`` by row and name as one table, or as several when the columns do not fit into ``width``."""
    from freeflow_core.config.run import row_title  # with pydantic behind it: not a price for --help

    names = list(dict.fromkeys(name for row in scores.values() for name in row))
    costs = [name for name in (EVALUATIONS, MILLISECONDS) if name in names]
    columns = costs + [name for name in names if name not in costs]
    cells = {name: [formats.number(row[name]) if name in row else "-" for row in scores.values()] for name in columns}
    titles = [row_title(row, evaluation) for row in scores]
    return [_table(titles, part, cells) for part in _split(columns, cells, width)]


def _table(titles: Sequence[str], columns: Sequence[str], cells: Mapping[str, Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("", width=_TITLE_WIDTH)
    for name in columns:
        table.add_column(Text(_header(name)), justify="right", width=_width(name, cells[name]))
    for number, title in enumerate(titles):
        table.add_row(Text(title), *(Text(cells[name][number]) for name in columns))
    return table


def _split(columns: Sequence[str], cells: Mapping[str, Sequence[str]], width: int) -> list[list[str]]:
    """Consecutive columns, as many to a part as fit beside the titles; at least one."""
    parts: list[list[str]] = []
    used = width
    for name in columns:
        needed = _width(name, cells[name]) + _GAP
        if not parts or used + needed > width:
            parts.append([])
            used = _TITLE_WIDTH + _GAP
        parts[-1].append(name)
        used += needed
    return parts


def _header(name: str) -> str:
    return _HEADERS.get(name, name.replace("_", " ").replace("/", " "))


def _width(name: str, values: Sequence[str]) -> int:
    return max(map(len, [*_header(name).split(), *values]))


MLFLOW, MLFLOW_DATABASE = "mlflow", "mlflow.db"
"""The tracker, and the store it makes beside the run folder unless it is told another."""


def print_result(result: RunResult, command: str, config: RunConfig | None) -> None:
    """Scores, files and next commands on stdout; silent on all but the main process."""
    if not is_main_process():
        return
    console = output()
    if result.scores:
        evaluation = config.evaluation if config else None
        for table in score_tables(result.scores, evaluation=evaluation, width=console.width):
            console.print(table)
    if result.load_report:
        print_line(console, f"Started from the teacher: {result.load_report}")
    cost = f", {formats.size(result.peak_memory_bytes)} of memory at most" if result.peak_memory_bytes else ""
    print_line(console, f"{result.status.capitalize()} after {formats.clock(result.duration_seconds)}{cost}.")
    if result.files:
        print_files(console, result.files)
    print_next(console, next_commands(result, command, config))


def print_line(console: Console, text: str) -> None:
    """One line, never wrapped, so that paths and commands can be copied."""
    console.print(Text(text), soft_wrap=True, highlight=False)


def print_files(console: Console, files: dict[str, Path]) -> None:
    """Names and paths of what was written."""
    print_line(console, "Written:")
    wide = max(map(len, files))
    for name, path in files.items():
        print_line(console, f"  {name:<{wide}}  {formats.path(path)}")


def print_next(console: Console, commands: Iterable[str]) -> None:
    """Commands to try, one a line."""
    if commands := list(commands):
        print_line(console, "Next:")
    for command in commands:
        print_line(console, f"  {command}")


def uses_local_mlflow(config: RunConfig) -> bool:
    """Whether the run's MLflow store lies beside its folder, as it does unless another one is named."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return False
    chosen = (choice.model_dump() for choice in config.trackers if choice.name == MLFLOW)
    return any(options.get("uri") is None for options in chosen)


def next_commands(result: RunResult, command: str, config: RunConfig | None) -> list[str]:
    """What one would do after this run."""
    folder = shlex.quote(formats.path(result.folder))
    commands = []
    if result.status != "finished":
        commands.append(f"freeflow {command} --resume --output {folder} --set training.stop_at_images=null")
    if command == "evaluate":
        return commands
    commands.append(f"freeflow sample --run {folder}")
    if not result.scores:
        commands.append(f"freeflow evaluate --run {folder}")
    database = result.folder.resolve().parent / MLFLOW_DATABASE
    if config is not None and uses_local_mlflow(config) and database.is_file():
        commands.append(f"mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{database.as_posix()}')}")
    return commands


STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def print_checks(console: Console, checks: Sequence[Check]) -> None:
    """One line a finding: status, name, detail."""
    print_columns(console, ((Text(c.status, style=STYLES[c.status]), Text(c.name), Text(c.detail)) for c in checks))


def print_columns(console: Console, rows: Iterable[Sequence[Text]]) -> None:
    """Rows of equally many cells without lines between them; only the last column is folded."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for number, row in enumerate(rows):
        if not number:
            for _ in row[1:]:
                table.add_column(no_wrap=True)
            table.add_column(overflow="fold")
        table.add_row(*row)
    console.print(table)


def failed(checks: Sequence[Check]) -> bool:
    """Whether any is an error."""
    return any(check.status == "error" for check in checks)
