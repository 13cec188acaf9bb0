"""What is printed after a run: the scores, what was written, and what to try next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from freeflow_cli import formats
from freeflow_cli.console import is_main_process, output

if TYPE_CHECKING:
    from freeflow_core.api import RunResult
    from freeflow_core.config import RunConfig

MLFLOW, MLFLOW_DATABASE = "mlflow", "mlflow.db"
"""The tracker, and the store it makes beside the run folder unless it is told another."""


def print_result(result: RunResult, command: str, config: RunConfig | None) -> None:
    """Scores, files and next commands on stdout; silent on all but the main process."""
    if not is_main_process():
        return
    from freeflow_cli.tables import score_tables  # with pydantic behind it: not a price for --help

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
