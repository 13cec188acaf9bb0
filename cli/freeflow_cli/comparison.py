"""What is printed after a comparison: scores, costs, what failed, and what was written."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from freeflow_cli import formats
from freeflow_cli.console import output, say, warn
from freeflow_cli.results import MLFLOW_DATABASE, print_files, print_line, print_next

if TYPE_CHECKING:
    from freeflow_core.api import CompareResult

_GAP = 3
_BREAK = re.compile(r"(?<=[/_])| ")


def print_comparison(result: CompareResult) -> None:
    """Two tables, since together they are wider than most terminals: scores, then what they cost."""
    from freeflow_core.tools.compare.files import cells, headers

    table, console = result.table, output()
    titles, rows = headers(table), [cells(table, row) for row in table.rows]
    keys = 1 + (table.setting is not None)
    scores = keys + len(table.steps) + 1
    planned = result.status == "planned"
    if not planned:
        print_line(console, f"{table.score or 'No score yet'}: mean ± standard deviation over seeds")
        console.print(
            _table([*titles[:scores], titles[-1]], [[*row[:scores], row[-1]] for row in rows], keys, console.width)
        )
        for title, score, fidelity in result.teacher_lines:
            print_line(console, f"{title}: {table.score} {score}, fidelity {fidelity}")
    costs = [[*row[:keys], *row[scores:-1]] for row in rows]
    console.print(_table([*titles[:keys], *titles[scores:-1]], costs, keys, console.width))
    if planned:
        runs = sum(row.planned for row in table.rows)
        print_line(console, f"Dry run: {runs} runs would go to {formats.path(result.folder)}; nothing was trained.")
        return
    print_files(console, result.files)
    for name, error in result.failed.items():
        warn(f"The run {name} failed: {error}")
    if result.failed:
        say("The same command again tries the failed runs once more, and leaves the others as they are.")
    print_next(console, _next_commands(result))


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], keys: int, width: int) -> Table:
    """Titles are broken when the table would be wider than ``width``; what identifies a row never is."""
    columns = zip(titles, *rows, strict=True)
    if sum(max(map(len, column)) + _GAP for column in columns) > width:
        titles = [_BREAK.sub("\n", title) for title in titles]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for number, title in enumerate(titles):
        first = number < keys
        table.add_column(Text(title), justify="left" if first else "right", overflow="fold", no_wrap=first)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _next_commands(result: CompareResult) -> list[str]:
    """MLflow's view of all runs, where its store lies beside the folder."""
    database = result.folder.resolve().parent / MLFLOW_DATABASE
    if not database.is_file() or os.environ.get("MLFLOW_TRACKING_URI"):
        return []
    return [f"mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{database.as_posix()}')}"]
