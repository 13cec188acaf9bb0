"""Everything that is printed: results on stdout, what is said on the way on stderr; numbers, times, paths, tables."""

from __future__ import annotations

import json
import math
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

if TYPE_CHECKING:
    from freeflow_core.api import RunResult
    from freeflow_core.config import EvaluationConfig, RunConfig
    from freeflow_core.types import Check

PLAIN_WIDTH = 100
"""Columns of tables that go to a file or a pipe."""
ERROR_STYLE = "bold red"
_HEADERS = {"evaluations": "evals", "ms_per_image": "ms / image"}
"""The costs of a row, which stand before its scores."""
_DISTANCES = (
    (("fd", "fid"), "Fréchet distance of features"),
    (("kd", "kid"), "kernel distance (squared MMD), an unbiased estimate, so it may be slightly negative"),
)
"""What the distances are that evaluators' scores begin with."""
_GAP = 3
"""Characters between two columns, and those at the edges of the table taken together."""
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


def score_tables(
    scores: Mapping[str, Mapping[str, float]], *, evaluation: EvaluationConfig | None = None, width: int = 100
) -> list[Table]:
    """``scores`` as one table, a column for each way of sampling, or as several where these do not fit ``width``.

    Before there are several, values with an error behind them are written closer.
    """
    from freeflow_core.config.run import row_title  # with pydantic behind it: not a price for --help
    from freeflow_core.interfaces.evaluator import score_texts  # with torch behind it

    texts = {row: score_texts(own, number) for row, own in scores.items()}
    columns = {row_title(row, evaluation): own for row, own in texts.items()}
    closer = {title: {name: _closer(text) for name, text in own.items()} for title, own in columns.items()}
    parts = min(_parts(columns, width), _parts(closer, width), key=len)
    return [make_table([c for c, _ in part], zip(*(cells for _, cells in part), strict=True)) for part in parts]


def _closer(text: str) -> str:
    """``2.31±0.5`` for ``2.309 ± 0.49``."""
    value, sign, error = text.partition(" ± ")
    return f"{float(f'{float(value):.3g}'):g}±{float(error):.1g}" if sign else text


def _parts(texts: Mapping[str, Mapping[str, str]], width: int) -> list[list[tuple[Column, list[str]]]]:
    """Columns with their cells, those of the names in front, as many tables as it takes; ``texts`` by title."""
    named = dict.fromkeys(name for row in texts.values() for name in row)
    names = [*(cost for cost in _HEADERS if cost in named), *(name for name in named if name not in _HEADERS)]
    shown = [_HEADERS.get(name, name.replace("_", " ").replace("/", " ")) for name in names]
    wide = max(map(len, shown), default=0)
    parts: list[list[tuple[Column, list[str]]]] = []
    used = width
    for title, own in texts.items():
        cells = [own.get(name, "-") for name in names]
        needed = max(map(len, [*title.split(), *cells]))
        used += needed + _GAP
        if not parts or used > width:  # at least one column to a table
            parts.append([(Column(no_wrap=True), shown)])
            used = wide + _GAP + needed + _GAP
        parts[-1].append((Column(Text(title), justify="right", width=needed), cells))
    return parts


def score_legend(scores: Mapping[str, Mapping[str, float]]) -> str:
    """What the distances among the scores are, once, in a line; empty where there are none."""
    kinds = {name.partition("_")[0] for row in scores.values() for name in row}
    told = [f"{', '.join(found)}: {text}" for names, text in _DISTANCES if (found := [n for n in names if n in kinds])]
    return f"{'; '.join(told)}. Lower is better; read them against the floor." if told else ""


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
