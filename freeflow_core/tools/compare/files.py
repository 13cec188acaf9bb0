"""The table as text: Markdown to read, CSV to compute with, and every score of every run."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freeflow_core.evaluation.report import markdown_table
from freeflow_core.files import write_text
from freeflow_core.tools.compare.manifest import Manifest
from freeflow_core.tools.compare.plan import PlannedRun
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


def write_files(
    table: Table, runs: Sequence[PlannedRun], manifest: Manifest, picture: Path | None = None
) -> dict[str, Path]:
    """Write the three files beside ``picture``, and name all. Raises ``OSError`` when the disk is full."""
    texts = {
        "table": (TABLE, _markdown(table, runs, manifest, picture)),
        "csv": (CSV, _csv(table)),
        "runs": (RUNS, _runs_csv(table, runs, manifest)),
    }
    for name, text in texts.values():
        write_text(manifest.folder / name, text)
    files = {key: manifest.folder / name for key, (name, _) in texts.items()}
    return files if picture is None else {**files, "plot": picture}


def _markdown(table: Table, runs: Sequence[PlannedRun], manifest: Manifest, picture: Path | None) -> str:
    teacher = runs[0].variant.config.teacher
    seeds = sorted({run.seed for run in runs})
    lines = [
        f"# {table.name}",
        "",
        f"Teacher `{teacher.name if teacher else 'none'}`, budget {table.budget}, seeds {', '.join(map(str, seeds))}. "
        f"The columns of steps hold `{table.score or 'no score yet'}`: mean ± standard deviation over seeds; a dash "
        "where the student has no such mode.",
        "",
        *markdown_table(headers(table), [cells(table, row) for row in table.rows]),
        "",
    ]
    if own := table.teacher_lines:
        lines += [*markdown_table(["without a student", table.score or "", "fidelity"], own), ""]
    lines += [
        f"{table.evaluation.num_samples} samples a row, from the same noise (evaluation seed {table.evaluation.seed}) "
        f"for all. `fidelity` is `{FIDELITY}` of the single step. `forwards` are passes of all networks: a row without "
        "gradient counts 1, with gradient 3, with a forward-mode derivative 2, as measured on training steps. "
        "`memory` is the most that a training step holds.",
        "",
        "Rows through each network, per image (plain / with gradient / derivative):",
        "",
        *markdown_table(["objective", "networks"], _passes(table, manifest)),
        "",
    ]
    if picture is not None:
        lines += [f"![{table.score} over {table.setting or 'cost'}]({picture.name})", ""]
    if table.errors:
        lines += ["## Failed", "", *(f"- `{name}`: {error}" for name, error in table.errors.items()), ""]
    return "\n".join(lines)


def _passes(table: Table, manifest: Manifest) -> list[tuple[str, str]]:
    """A line for each objective; one for each of its rows where a sweep changes the passes."""
    texts: dict[str, dict[str, str]] = {}  # by objective, then by row
    for row in table.rows:
        if (cost := manifest.records[row.name].cost) is not None:
            texts.setdefault(row.objective, {})[row.name] = "; ".join(
                f"{network} {rows.plain:.4g} / {rows.gradient:.4g} / {rows.derivative:.4g}"
                for network, rows in cost.rows.items()
            )
    lines: list[tuple[str, str]] = []
    for objective, of_rows in texts.items():
        same = len(set(of_rows.values())) == 1
        lines += [(objective, next(iter(of_rows.values())))] if same else list(of_rows.items())
    return lines


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


def _runs_csv(table: Table, runs: Sequence[PlannedRun], manifest: Manifest) -> str:
    rows: list[list[Any]] = []
    outcomes = manifest.outcomes(runs)
    for run in runs:
        found = outcomes[run.name]
        head = [run.name, run.variant.objective, run.variant.value, run.seed, found.status]
        scores = [(row, name, value) for row, own in found.scores.items() for name, value in own.items()]
        rows += [[*head, *score, None] for score in scores] or [[*head, None, None, None, found.error]]
    swept = table.setting or "swept_value"
    return _lines(["run", "objective", swept, "seed", "status", "row", "score", "value", "error"], rows)


def _lines(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([titles, *rows])
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
