"""The table at the end of a run: one line for each way of sampling, one column for each score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from freeflow_cli import formats
from freeflow_core.config.titles import row_title

if TYPE_CHECKING:
    from freeflow_core.config import EvaluationConfig

EVALUATIONS, MILLISECONDS = "evaluations", "ms_per_image"
_HEADERS = {EVALUATIONS: "evals", MILLISECONDS: "ms / image"}
_TITLE_WIDTH = 24
_GAP = 3
"""Characters between two columns, and those at the edges of the table taken together."""


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
