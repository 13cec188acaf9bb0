"""What is printed after a run: scores, findings, what was written, and what to try next."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from freeflow_cli.console import (
    clock,
    is_main_process,
    make_table,
    number,
    print_columns,
    print_files,
    print_line,
    print_next,
    shown_path,
    size,
    stdout,
)

if TYPE_CHECKING:
    from freeflow_core.api import RunResult
    from freeflow_core.config import EvaluationConfig, RunConfig
    from freeflow_core.types import Check


_HEADERS = {"evaluations": "evals", "ms_per_image": "ms / image"}
"""The costs of a row, which stand before its scores."""
_TITLE_WIDTH = 24
_GAP = 3
"""Characters between two columns, and those at the edges of the table taken together."""
STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def score_tables(
    scores: Mapping[str, Mapping[str, float]], *, evaluation: EvaluationConfig | None = None, width: int = 100
) -> list[Table]:
    """``scores`` by row and name as one table, or as several when the columns do not fit into ``width``."""
    from freeflow_core.config.run import row_title  # with pydantic behind it: not a price for --help

    names = dict.fromkeys(name for row in scores.values() for name in row)
    parts: list[list[tuple[Column, list[str]]]] = []
    used = width
    for name in [*(cost for cost in _HEADERS if cost in names), *(name for name in names if name not in _HEADERS)]:
        header = _HEADERS.get(name, name.replace("_", " ").replace("/", " "))
        cells = [number(row[name]) if name in row else "-" for row in scores.values()]
        needed = max(map(len, [*header.split(), *cells]))
        used += needed + _GAP
        if not parts or used > width:  # at least one column to a table
            parts.append([(Column(width=_TITLE_WIDTH), [row_title(row, evaluation) for row in scores])])
            used = _TITLE_WIDTH + _GAP + needed + _GAP
        parts[-1].append((Column(Text(header), justify="right", width=needed), cells))
    return [make_table([c for c, _ in part], zip(*(cells for _, cells in part), strict=True)) for part in parts]


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
        print_line(f"Started from the teacher: {result.load_report}")
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
