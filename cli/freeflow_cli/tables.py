"""The table at the end of a run: one line for each way of sampling, one column for each score."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from freeflow_cli import formats

if TYPE_CHECKING:
    from freeflow_core.config import EvaluationConfig

EVALUATIONS, MILLISECONDS = "evaluations", "ms_per_image"
_HEADERS = {EVALUATIONS: "evals", MILLISECONDS: "ms per image"}
_TITLE_WIDTH = 24
_PADDING = 2


def row_title(row: str, evaluation: EvaluationConfig | None = None) -> str:
    """A row of scores as people name it; ``evaluation`` fills in the steps. Unknown rows keep their name."""
    many = f"{evaluation.reference_steps} steps" if evaluation else "many steps"
    jump = (
        f"student jump to t={evaluation.jump_to:g}, then teacher, {_steps(evaluation.jump_steps)}"
        if evaluation
        else "student jump, then teacher"
    )
    titles = {
        "data": "training images (floor)",
        "teacher": f"teacher, {many}",
        "student": "student, 1 step",
        "student_jump": jump,
    }
    if match := re.fullmatch(r"(\w+?)_(\d+)_steps?", row):
        return f"{match[1].replace('_', ' ')}, {_steps(int(match[2]))}"
    return titles.get(row, row.replace("_", " "))


def score_tables(
    scores: Mapping[str, Mapping[str, float]], *, evaluation: EvaluationConfig | None = None, width: int = 100
) -> list[Table]:
    """``scores`` by row and name as one table, or as several when the columns do not fit into ``width``."""
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
        table.add_column(Text(_header(name)), justify="right", min_width=_width(name, cells[name]))
    for number, title in enumerate(titles):
        table.add_row(Text(title), *(Text(cells[name][number]) for name in columns))
    return table


def _split(columns: Sequence[str], cells: Mapping[str, Sequence[str]], width: int) -> list[list[str]]:
    """Consecutive columns, as many to a part as fit beside the titles; at least one."""
    parts: list[list[str]] = []
    used = width
    for name in columns:
        needed = _width(name, cells[name]) + _PADDING
        if not parts or used + needed > width:
            parts.append([])
            used = _TITLE_WIDTH + _PADDING
        parts[-1].append(name)
        used += needed
    return parts


def _header(name: str) -> str:
    return _HEADERS.get(name, re.sub(r"[_/]", " ", name))


def _width(name: str, values: Sequence[str]) -> int:
    return max(map(len, [*_header(name).split(), *values]))


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"
