"""What a comparison comes to: for each objective the mean and the spread over its seeds; and the same as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, final

from freeflow_core.config import EvaluationConfig
from freeflow_core.config.run import row_title
from freeflow_core.evaluation.report import markdown_table
from freeflow_core.evaluation.scores import COST_COLUMNS, DATA, FLOOR, STUDENT, TEACHER, TEACHER_1
from freeflow_core.files import write_text
from freeflow_core.interfaces.evaluator import without_errors
from freeflow_core.tools.compare.cost import Cost
from freeflow_core.tools.compare.manifest import FAILED, FINISHED, Manifest
from freeflow_core.tools.compare.plan import PlannedRun
from freeflow_core.types import Scores

FIDELITY = "fidelity_mse"
"""Score of the evaluator ``fidelity``: squared error to the teacher's end points from the same noise."""

_PREFERRED = ("fid", "fd", "kid", "kd", "energy")
_AGAINST = ("_data", "", "_teacher")


@final
@dataclass(frozen=True)
class Estimate:
    """Mean over ``number`` seeds, and their standard deviation (None for a single one)."""

    mean: float
    deviation: float | None
    number: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Estimate | None:
        found = [value for value in values if value is not None]
        if not found:
            return None
        return cls(mean(found), stdev(found) if len(found) > 1 else None, len(found))

    def __str__(self) -> str:
        if self.deviation is None:
            return f"{self.mean:.4g}"
        return f"{self.mean:.4g} ± {self.deviation:{'.0f' if self.deviation >= 100 else '.2g'}}"


@dataclass(frozen=True)
class Row:
    """One objective, at one value of the sweep.

    Args:
        name: the variant's.
        value: of the sweep; None where it does not matter.
        batch_size: images a step.
        finished, failed, planned: numbers of runs.
        images, cost: training length, and what a step costs; None while they are not known.
        scores: of the student by its number of steps; without those it has no mode for.
        fidelity: of its single step to the teacher.
        curve: the score of one step over the images seen, where runs were scored during training; the end included.
    """

    name: str
    objective: str
    value: Any
    batch_size: int
    finished: int
    failed: int
    planned: int
    images: int | None
    cost: Cost | None
    scores: Mapping[int, Estimate]
    fidelity: Estimate | None
    images_per_second: Estimate | None
    curve: Mapping[int, Estimate] = field(default_factory=dict)

    @property
    def status(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.finished} of {self.planned}{failed}"

    @property
    def forwards_per_image(self) -> float | None:
        return self.cost and self.cost.forwards_per_image

    @property
    def forwards_per_step(self) -> float | None:
        return self.cost and self.cost.forwards_per_image * self.batch_size

    @property
    def training_forwards(self) -> float | None:
        return self.cost and self.images and self.images * self.cost.forwards_per_image

    @property
    def training_seconds(self) -> float | None:
        return self.images_per_second and self.images and self.images / self.images_per_second.mean


@dataclass(frozen=True)
class Table:
    """All rows.

    Args:
        score: the one that is compared, such as ``fd_data``; None while no run has any.
        setting: that is swept, or None.
        steps: numbers of steps the students were asked for.
        budget: as it was given.
        teacher: what the teacher and the data themselves score, by name of the row: made once for all runs.
        errors: of failed runs, by their names.
        evaluation: how rows were scored, for their titles.
    """

    name: str
    score: str | None
    setting: str | None
    steps: tuple[int, ...]
    budget: str
    rows: tuple[Row, ...]
    teacher: Scores = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def teacher_score(self, row: str) -> float | None:
        return self.teacher.get(row, {}).get(self.score or "")

    def title(self, row: str) -> str:
        return row_title(row, self.evaluation)

    @property
    def teacher_lines(self) -> list[tuple[str, str, str]]:
        lines = []
        for row, own in self.teacher.items():
            score, fidelity = (f"{own[c]:.4g}" if c in own else "-" for c in (self.score or "", FIDELITY))
            if (score, fidelity) != ("-", "-"):
                lines.append((self.title(row), score, fidelity))
        return lines

    def estimates(self, row: Row) -> dict[str, Estimate | None]:
        """The row's score at each number of steps, by name, such as ``fd_data_2_steps``."""
        return {f"{self.score or 'score'}_{n}_step{'s' * (n > 1)}": row.scores.get(n) for n in self.steps}


def make_table(manifest: Manifest, runs: Sequence[PlannedRun], score: str | None = None) -> Table:
    """Gather what is there; runs that are not finished leave gaps.

    Rows of the teacher are left out where a sweep changes the teacher or how it is scored.

    Args:
        score: wanted; one that no run has is replaced by the default.
    """
    outcomes, variants = manifest.outcomes(runs), {run.variant.name: run.variant for run in runs}
    evaluation = runs[0].variant.config.evaluation
    finished = [found for found in outcomes.values() if found.status == FINISHED]
    names = list(dict.fromkeys(name for found in finished for name in found.scores.get(STUDENT, {})))
    chosen = score if score in names else default_score(names)
    steps = (1, *(n for n in evaluation.few_steps if n != 1))

    def row(name: str) -> Row:
        record = manifest.records[name]
        own = [outcomes[run.name] for run in runs if run.variant.name == name]
        done = [found for found in own if found.status == FINISHED]

        def estimate(line: str, column: str | None) -> Estimate | None:
            return Estimate.of(found.scores.get(line, {}).get(column or "") for found in done)

        seen = sorted({images for found in done for images in found.during})
        curve = {n: Estimate.of(found.during.get(n, {}).get(chosen or "") for found in done) for n in seen}
        by_steps = {n: estimate(STUDENT if n == 1 else f"{STUDENT}_{n}_steps", chosen) for n in steps}
        return Row(
            name=name,
            objective=record.objective,
            value=record.value,
            batch_size=variants[name].config.training.batch_size,
            finished=len(done),
            failed=sum(found.status == FAILED for found in own),
            planned=len(own),
            images=record.images,
            cost=record.cost,
            scores={n: found for n, found in by_steps.items() if found is not None},
            fidelity=estimate(STUDENT, FIDELITY),
            images_per_second=Estimate.of(found.images_per_second for found in done),
            curve={n: found for n, found in curve.items() if found is not None},
        )

    one_teacher = len({variant.evaluation_key for variant in variants.values()}) == 1
    shown = finished[0].scores if finished and one_teacher else {}
    return Table(
        name=manifest.settings["name"],
        score=chosen,
        setting=(manifest.settings["sweep"] or {}).get("setting"),
        steps=steps,
        budget=manifest.settings["budget"] or "the preset's number of images",
        rows=tuple(map(row, variants)),
        teacher={row: shown[row] for row in (TEACHER, TEACHER_1, FLOOR, DATA) if shown.get(row)},
        errors={name: found.error for name, found in outcomes.items() if found.error is not None},
        evaluation=evaluation,
    )


def default_score(names: Sequence[str]) -> str | None:
    """The first distance to data, else to stored statistics, else to the teacher; else the first score there is."""
    wanted = [f"{prefix}{suffix}" for suffix in _AGAINST for prefix in _PREFERRED]
    other = [name for name in without_errors(names) if name not in COST_COLUMNS]
    return next((name for name in wanted if name in names), other[0] if other else None)


def lower_is_better(score: str) -> bool:
    """Whether the score is one of the known distances."""
    return score == FIDELITY or score.split("_")[0] in _PREFERRED


def cells(table: Table, row: Row) -> dict[str, str]:
    """One line of the table, by its titles; a dash for what the student cannot do, or what is not known."""

    def shown(value: Any, form: str = "") -> str:
        return "-" if value is None else format(value, form) if form else str(value)

    swept = {table.setting.rpartition(".")[2]: "all" if row.value is None else str(row.value)} if table.setting else {}
    return {
        "objective": row.objective,
        **swept,
        **{f"{n} step{'s' * (n > 1)}": shown(row.scores.get(n)) for n in table.steps},
        "fidelity": shown(row.fidelity),
        "images": shown(row.images, ","),
        "images/s": shown(row.images_per_second),
        "forwards/image": shown(row.forwards_per_image, ".4g"),
        "forwards/step": shown(row.forwards_per_step, ",.0f"),
        "memory": "-" if row.cost is None or row.cost.peak_memory is None else _size(row.cost.peak_memory),
        "runs": row.status,
    }


def write_files(
    table: Table, runs: Sequence[PlannedRun], manifest: Manifest, picture: Path | None = None
) -> dict[str, Path]:
    """Markdown to read, CSV to compute with, every score of every run; beside ``picture``. Raises ``OSError``."""
    texts = {
        "table": ("comparison.md", _markdown(table, runs, picture)),
        "csv": ("comparison.csv", _csv([_numbers(table, row) for row in table.rows])),
        "runs": ("runs.csv", _csv(_scores(table, runs, manifest))),
    }
    for name, text in texts.values():
        write_text(manifest.folder / name, text)
    files = {key: manifest.folder / name for key, (name, _) in texts.items()}
    return files if picture is None else {**files, "plot": picture}


def _markdown(table: Table, runs: Sequence[PlannedRun], picture: Path | None) -> str:
    teacher = runs[0].variant.config.teacher
    seeds = sorted({run.seed for run in runs})
    rows = [cells(table, row) for row in table.rows]
    lines = [
        f"# {table.name}",
        "",
        f"Teacher `{teacher.name if teacher else 'none'}`, budget {table.budget}, seeds {', '.join(map(str, seeds))}. "
        f"The columns of steps hold `{table.score or 'no score yet'}`: mean ± standard deviation over seeds; a dash "
        "where the student has no such mode.",
        "",
        *markdown_table(list(rows[0]), [list(row.values()) for row in rows]),
        "",
    ]
    if own := table.teacher_lines:
        lines += [*markdown_table(["without a student", table.score or "", "fidelity"], own), ""]
    lines += [
        f"{table.evaluation.samples_a_row}, from the same noise (evaluation seed {table.evaluation.seed}) "
        f"for all. `fidelity` is `{FIDELITY}` of the single step. `forwards` are passes of all networks: a row without "
        "gradient counts 1, with gradient 3, with a forward-mode derivative 2, as measured on training steps. "
        "`memory` is the most that a training step holds.",
        "",
        "Rows through each network, per image (plain / with gradient / derivative):",
        "",
        *markdown_table(["objective", "networks"], _passes(table)),
        "",
    ]
    if picture is not None:
        lines += [f"![{table.score} over {table.setting or 'cost'}]({picture.name})", ""]
    if table.errors:
        lines += ["## Failed", "", *(f"- `{name}`: {error}" for name, error in table.errors.items()), ""]
    return "\n".join(lines)


def _passes(table: Table) -> list[tuple[str, str]]:
    texts: dict[str, dict[str, str]] = {}  # by objective, then by row
    for row in table.rows:
        if row.cost is not None:
            texts.setdefault(row.objective, {})[row.name] = "; ".join(
                f"{network} {rows.plain:.4g} / {rows.gradient:.4g} / {rows.derivative:.4g}"
                for network, rows in row.cost.rows.items()
            )
    lines: list[tuple[str, str]] = []
    for objective, of_rows in texts.items():
        same = len(set(of_rows.values())) == 1
        lines += [(objective, next(iter(of_rows.values())))] if same else list(of_rows.items())
    return lines


def _numbers(table: Table, row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {
        "objective": row.objective,
        "variant": row.name,
        "swept_setting": table.setting,
        "swept_value": row.value,
        **{name: getattr(row, name) for name in ("finished", "failed", "planned", "images", "forwards_per_image")},
        **{name: getattr(row, name) for name in ("forwards_per_step", "training_forwards", "training_seconds")},
        "peak_memory_bytes": row.cost and row.cost.peak_memory,
    }
    estimates = {**table.estimates(row), FIDELITY: row.fidelity, "images_per_second": row.images_per_second}
    for name, estimate in estimates.items():
        line |= {f"{name}_mean": estimate and estimate.mean, f"{name}_deviation": estimate and estimate.deviation}
    return line


def _scores(table: Table, runs: Sequence[PlannedRun], manifest: Manifest) -> list[dict[str, Any]]:
    """The lines of ``runs.csv``: each score of each run, or why it has none."""
    lines: list[dict[str, Any]] = []
    scores: Sequence[tuple[str | None, str | None, float | None]]
    outcomes = manifest.outcomes(runs)
    for run in runs:
        found, variant = outcomes[run.name], run.variant
        head = {"run": run.name, "objective": variant.objective, table.setting or "swept_value": variant.value}
        head |= {"seed": run.seed, "status": found.status}
        scores = [(row, name, value) for row, own in found.scores.items() for name, value in own.items()]
        for row, name, value in scores or [(None, None, None)]:
            lines.append({**head, "row": row, "score": name, "value": value, "error": found.error})
    return lines


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _size(num_bytes: int) -> str:
    if num_bytes < 2**20:
        return f"{num_bytes / 2**10:.0f} KiB"
    return f"{num_bytes / 2**30:.3g} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.3g} MiB"
