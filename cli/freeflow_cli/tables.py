"""Tables and the numbers in them: one table where any way of writing fits the terminal, else as few as do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from rich import box
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from freeflow_core.config import EvaluationConfig

_COSTS = {"evaluations": "evals", "ms_per_image": "ms / image"}
"""The costs of a row, which stand before its scores."""
_DISTANCES = (
    (("fd", "fid"), "Fréchet distance of features"),
    (("kd", "kid"), "kernel distance (squared MMD), an unbiased estimate, so it may be slightly negative"),
)
"""What the distances are that evaluators' scores begin with."""
_EDGES = 2
_BREAK = re.compile(r"(?<= )|(?=/)|(?<=_)|(?<=[a-z]-)(?=[a-z])")
"""Where titles and names may go on in the next line; never inside a word or a number."""


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


def _closer(cell: str) -> str:
    """``2.31±0.5`` for ``2.309 ± 0.49``."""
    value, sign, error = cell.partition(" ± ")
    return f"{_digits(value, 3)}±{_digits(error, 1)}" if sign else cell


def _stacked(cell: str) -> str:
    """The error below its value."""
    return cell.replace(" ± ", "\n±")


def _shortest(cell: str) -> str:
    """Besides, three digits of every number."""
    return "\n".join(_digits(part, 3) for part in _closer(cell).replace("±", "\n±").split("\n"))


def _digits(text: str, count: int) -> str:
    """``count`` significant digits of a number, all of them before the point; other text as it is."""
    try:
        value = float(text)
    except ValueError:
        return text
    return f"{value:.0f}" if abs(value) >= 10**count else f"{float(f'{value:.{count}g}'):g}"


@final
@dataclass(frozen=True)
class _Way:
    """How closely a table is written.

    Args:
        form: of the cells.
        gap: characters between two columns.
        titles, cells, names: whether they may be broken between words.
    """

    form: Callable[[str], str] = str
    gap: int = 3
    titles: bool = True
    cells: bool = False
    names: bool = False


_WAYS = (
    _Way(titles=False),
    _Way(),
    _Way(_closer),
    _Way(_stacked, gap=2, cells=True),
    _Way(_stacked, gap=2, cells=True, names=True),
    _Way(_shortest, gap=2, cells=True, names=True),
)
"""From the widest to the closest; the last one alone leaves digits out that have no error behind them."""


def fitted_tables(titles: Sequence[str], rows: Sequence[Sequence[str]], *, keys: int, width: int) -> list[Table]:
    """``rows`` below ``titles``, no wider than ``width``; the first ``keys`` columns name a row, in every table."""
    layouts = [_Layout.of(titles, rows, way, keys=keys, width=width) for way in _WAYS]
    fewest = min(layouts, key=lambda layout: len(layout.parts))
    if len(fewest.parts) > 1:
        fewest = min(layouts[:-1], key=lambda layout: len(layout.parts))
    return fewest.tables(keys)


@final
@dataclass(frozen=True)
class _Layout:
    """Columns (the title first) with their widths, and which of them go into each table."""

    columns: Sequence[Sequence[str]]
    widths: Sequence[int]
    parts: Sequence[Sequence[int]]
    gap: int

    @classmethod
    def of(cls, titles: Sequence[str], rows: Sequence[Sequence[str]], way: _Way, *, keys: int, width: int) -> _Layout:
        columns = list(zip(titles, *([*row[:keys], *map(way.form, row[keys:])] for row in rows), strict=True))
        least = [
            max(
                _least(title) if way.titles else len(title),
                *(_least(cell) if (way.names if i < keys else way.cells) else _longest(cell) for cell in cells),
                0,
            )
            for i, (title, *cells) in enumerate(columns)
        ]
        names = sum(least[:keys]) + way.gap * keys + _EDGES
        parts: list[list[int]] = []
        used = width
        for i, needed in enumerate(least[keys:], keys):
            used += needed + way.gap
            if not parts or used - way.gap > width:  # at least one column to a table
                parts.append([])
                used = names + needed + way.gap
            parts[-1].append(i)
        spare = width - max((names + sum(least[i] + way.gap for i in part) - way.gap for part in parts), default=width)
        for i in range(keys):
            more = max(0, min(spare, max(map(_longest, columns[i][1:]), default=0) - least[i]))
            least[i], spare = least[i] + more, spare - more
        return cls(columns, least, parts, way.gap)

    def tables(self, keys: int) -> list[Table]:
        return [self._table([*range(keys), *part], keys) for part in self.parts]

    def _table(self, chosen: Sequence[int], keys: int) -> Table:
        texts = [[_folded(text, self.widths[i]) for text in self.columns[i]] for i in chosen]
        head = [
            Column(Text(title), width=self.widths[i], justify="left" if i < keys else "right")
            for i, (title, *_) in zip(chosen, texts, strict=True)
        ]
        return make_table(head, zip(*(cells for _, *cells in texts), strict=True), padding=(0, self.gap - 1, 0, 0))


def _longest(text: str) -> int:
    return max(map(len, text.split("\n")))


def _least(text: str) -> int:
    return max(len(piece.strip()) for line in text.split("\n") for piece in _BREAK.split(line))


def _folded(text: str, width: int) -> str:
    """``text`` in lines of at most ``width``, where it can be broken."""
    lines: list[str] = []
    for given in text.split("\n"):
        lines.append("")
        for piece in _BREAK.split(given):
            if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(map(str.rstrip, lines))


def score_tables(
    scores: Mapping[str, Mapping[str, float]], *, evaluation: EvaluationConfig | None = None, width: int = 100
) -> list[Table]:
    """``scores`` as one table, a column for each way of sampling, or as several where these do not fit ``width``."""
    from freeflow_core.config.run import row_title  # with pydantic behind it: not a price for --help
    from freeflow_core.interfaces.evaluator import score_texts  # with torch behind it

    texts = {row_title(row, evaluation): score_texts(own, number) for row, own in scores.items()}
    named = dict.fromkeys(name for row in texts.values() for name in row)
    names = [*(cost for cost in _COSTS if cost in named), *(name for name in named if name not in _COSTS)]
    shown = [_COSTS.get(name, name.replace("_", " ").replace("/", " ")) for name in names]
    rows = [[name, *(own.get(key, "-") for own in texts.values())] for name, key in zip(shown, names, strict=True)]
    return fitted_tables(["", *texts], rows, keys=1, width=width)


def score_legend(scores: Mapping[str, Mapping[str, float]]) -> str:
    """What the distances among the scores are, once, in a line; empty where there are none."""
    from freeflow_core.interfaces.evaluator import ERROR

    columns = {name for row in scores.values() for name in row}
    kinds = {name.partition("_")[0] for name in columns}
    told = [f"{', '.join(found)}: {text}" for names, text in _DISTANCES if (found := [n for n in names if n in kinds])]
    if told and any(name.endswith(ERROR) and name.removesuffix(ERROR) in columns for name in columns):
        told.append("±: standard error")
    return f"{'; '.join(told)}. Lower is better; read them against the floor." if told else ""
