"""What is printed after a run: scores, findings, what was written, and what to try next."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from freeflow_cli import formats
from freeflow_cli.console import is_main_process, stdout

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


def make_table(columns: Iterable[Column | str], rows: Iterable[Iterable[str]] = (), **options: Any) -> Table:
    """A table with a line below its titles, as all of ours; the cells are taken as they are, without markup."""
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, **options)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _table(titles: Sequence[str], names: Sequence[str], cells: Mapping[str, Sequence[str]]) -> Table:
    columns = [Column(Text(_header(name)), justify="right", width=_width(name, cells[name])) for name in names]
    return make_table(
        [Column(width=_TITLE_WIDTH), *columns], zip(titles, *(cells[name] for name in names), strict=True)
    )


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


def print_result(result: RunResult, command: str, config: RunConfig | None) -> None:
    """Scores, files and next commands on stdout; silent on all but the main process."""
    if not is_main_process():
        return
    console = stdout()
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


def mlflow_commands(folder: Path) -> list[str]:
    """MLflow's view of the runs, where its store lies beside ``folder``, as it does unless another one is named."""
    database = folder.resolve().parent / "mlflow.db"
    if os.environ.get("MLFLOW_TRACKING_URI") or not database.is_file():
        return []
    return [f"mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{database.as_posix()}')}"]


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
    trackers = [choice.model_dump() for choice in config.trackers] if config else []
    if any(tracker["name"] == "mlflow" and tracker.get("uri") is None for tracker in trackers):
        commands += mlflow_commands(result.folder)
    return commands


STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def print_checks(console: Console, checks: Sequence[Check]) -> None:
    """One line a finding: status, name, detail."""
    print_columns(console, ((Text(c.status, style=STYLES[c.status]), Text(c.name), Text(c.detail)) for c in checks))


def print_columns(console: Console, rows: Iterable[Sequence[Text]]) -> None:
    """Rows of equally many cells without lines between them; only the last column is folded."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    for column in table.columns[:-1]:
        column.no_wrap = True
    for column in table.columns[-1:]:
        column.overflow = "fold"
    console.print(table)


def print_json(values: object) -> None:
    """JSON on stdout; dataclasses become mappings, paths text."""
    typer.echo(json.dumps(values, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def failed(checks: Sequence[Check]) -> bool:
    """Whether any is an error."""
    return any(check.status == "error" for check in checks)
