"""The table as text: Markdown to read, CSV to compute with, and every score of every run."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from freeflow_core.config import EvaluationConfig
from freeflow_core.config.run import row_title
from freeflow_core.files import write_text
from freeflow_core.tools.compare.outcomes import Outcome, PlannedRun
from freeflow_core.tools.compare.passes import Rows
from freeflow_core.tools.compare.table import FIDELITY, Estimate, Row, Table

TABLE, CSV, RUNS = "comparison.md", "comparison.csv", "runs.csv"


def headers(table: Table) -> list[str]:
    """Column titles, for people."""
    steps = [f"{n} step" if n == 1 else f"{n} steps" for n in table.steps]
    swept = [table.setting.rpartition(".")[2]] if table.setting else []
    costs = ["images", "images/s", "forwards/image", "forwards/step", "memory"]
    return ["objective", *swept, *steps, "fidelity", *costs, "runs"]


def cells(table: Table, row: Row) -> list[str]:
    """One line of the table; a dash for what the student cannot do, or what is not known."""
    swept = ["all" if row.value is None else str(row.value)] if table.setting else []
    return [
        row.objective,
        *swept,
        *(_shown(row.scores.get(n)) for n in table.steps),
        _shown(row.fidelity),
        "-" if row.images is None else f"{row.images:,}",
        _shown(row.images_per_second),
        "-" if row.forwards_per_image is None else f"{row.forwards_per_image:.4g}",
        "-" if row.forwards_per_step is None else f"{row.forwards_per_step:,.0f}",
        "-" if row.peak_memory is None else _size(row.peak_memory),
        row.status,
    ]


def teacher_lines(table: Table, evaluation: EvaluationConfig) -> list[tuple[str, str, str]]:
    """Title, score and fidelity of the teacher's and the data's own rows."""
    columns = (table.score or "", FIDELITY)
    shown: dict[str, tuple[str, str]] = {}
    for row, own in table.teacher.items():
        score, fidelity = (f"{own[column]:.4g}" if column in own else "-" for column in columns)
        shown[row] = score, fidelity
    return [(row_title(row, evaluation), *pair) for row, pair in shown.items() if set(pair) != {"-"}]


def write_files(
    table: Table,
    runs: Sequence[PlannedRun],
    outcomes: Mapping[str, Outcome],
    costs: Mapping[str, Mapping[str, Rows]],
    pictures: Mapping[str, Path],
    folder: Path,
) -> dict[str, Path]:
    """Write the three files; each is whole or not there. Raises ``OSError`` when the disk is full."""
    evaluation = runs[0].variant.config.evaluation
    texts = {
        "table": (TABLE, _markdown(table, runs, costs, pictures, evaluation)),
        "csv": (CSV, _csv(table)),
        "runs": (RUNS, _runs_csv(table, runs, outcomes)),
    }
    for name, text in texts.values():
        write_text(folder / name, text)
    return {key: folder / name for key, (name, _) in texts.items()}


def _markdown(
    table: Table,
    runs: Sequence[PlannedRun],
    costs: Mapping[str, Mapping[str, Rows]],
    pictures: Mapping[str, Path],
    evaluation: EvaluationConfig,
) -> str:
    config = runs[0].variant.config
    teacher = config.teacher.name if config.teacher else "none"
    seeds = sorted({run.seed for run in runs})
    lines = [
        f"# {table.name}",
        "",
        f"Teacher `{teacher}`, budget {table.budget}, seeds {', '.join(map(str, seeds))}. The columns of steps hold "
        f"`{table.score or 'no score yet'}`: mean ± standard deviation over seeds; a dash where the student has no "
        "such mode.",
        "",
        *_markdown_table(headers(table), [cells(table, row) for row in table.rows]),
        "",
    ]
    if own := teacher_lines(table, evaluation):
        lines += [*_markdown_table(["without a student", table.score or "", "fidelity"], own), ""]
    lines += [_legend(evaluation), "", "Rows through each network, per image (plain / with gradient / derivative):", ""]
    lines += [*_markdown_table(["objective", "networks"], _passes(table, costs)), ""]
    for title, path in pictures.items():
        lines += [f"![{title}]({path.name})", ""]
    if table.errors:
        lines += ["## Failed", "", *(f"- `{name}`: {error}" for name, error in table.errors.items()), ""]
    return "\n".join(lines)


def _passes(table: Table, costs: Mapping[str, Mapping[str, Rows]]) -> list[list[str]]:
    """A line for each objective; one for each of its rows where a sweep changes the passes."""
    texts = {
        row.name: "; ".join(
            f"{network} {rows.plain:.4g} / {rows.gradient:.4g} / {rows.derivative:.4g}"
            for network, rows in costs[row.name].items()
        )
        for row in table.rows
        if row.name in costs
    }
    lines: dict[tuple[str, str], None] = {}
    for row in table.rows:
        if row.name in texts:
            same = {texts[r.name] for r in table.rows if r.objective == row.objective and r.name in texts}
            lines[row.objective if len(same) == 1 else row.name, texts[row.name]] = None
    return [list(line) for line in lines]


def _legend(evaluation: EvaluationConfig) -> str:
    return (
        f"{evaluation.num_samples} samples a row, from the same noise (evaluation seed {evaluation.seed}) for all. "
        f"`fidelity` is `{FIDELITY}` of the single step. `forwards` are passes of all networks: a row without gradient "
        "counts 1, with gradient 3, with a forward-mode derivative 2, as measured on training steps. `memory` is the "
        "most that a training step holds."
    )


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(titles)} |",
        "|---" * len(titles) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _csv(table: Table) -> str:
    titles = ["objective", "variant", "swept_setting", "swept_value", "finished", "failed", "planned", "images"]
    titles += ["forwards_per_image", "forwards_per_step", "training_forwards", "training_seconds", "peak_memory_bytes"]
    estimated = [f"{table.score or 'score'}_{n}_step{'s' * (n > 1)}" for n in table.steps]
    estimated += [FIDELITY, "images_per_second"]
    titles += [f"{name}_{part}" for name in estimated for part in ("mean", "deviation")]
    rows: list[list[Any]] = []
    for row in table.rows:
        numbers: list[Any] = [row.objective, row.name, table.setting, row.value, row.finished, row.failed, row.planned]
        numbers += [row.images, row.forwards_per_image, row.forwards_per_step, row.training_forwards]
        numbers += [row.training_seconds, row.peak_memory]
        for estimate in (*(row.scores.get(n) for n in table.steps), row.fidelity, row.images_per_second):
            numbers += [None, None] if estimate is None else [estimate.mean, estimate.deviation]
        rows.append(numbers)
    return _lines(titles, rows)


def _runs_csv(table: Table, runs: Sequence[PlannedRun], outcomes: Mapping[str, Outcome]) -> str:
    rows: list[list[Any]] = []
    for run in runs:
        found = outcomes[run.name]
        head = [run.name, run.variant.objective, run.variant.value, run.seed, found.status]
        scores = [(row, name, value) for row, own in found.scores.items() for name, value in own.items()]
        rows += [[*head, *score, None] for score in scores] or [[*head, None, None, None, found.error]]
    return _lines(
        ["run", "objective", table.setting or "swept_value", "seed", "status", "row", "score", "value", "error"], rows
    )


def _lines(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([titles, *rows])
    return text.getvalue()


def _shown(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if estimate.deviation is None:
        return f"{estimate.mean:.4g}"
    spread = f"{estimate.deviation:.0f}" if estimate.deviation >= 100 else f"{estimate.deviation:.2g}"
    return f"{estimate.mean:.4g} ± {spread}"


def _size(num_bytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes / 2**10:.0f} KiB"
