"""What a comparison comes to: for each objective the mean and the spread over its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from freeflow_core.config import EvaluationConfig
from freeflow_core.config.run import row_title
from freeflow_core.evaluation.scores import COST_COLUMNS, DATA, STUDENT, TEACHER, TEACHER_1
from freeflow_core.tools.compare.manifest import FAILED, FINISHED, Manifest, Outcome
from freeflow_core.tools.compare.plan import PlannedRun
from freeflow_core.types import Scores

FIDELITY = "fidelity_mse"
"""Score of the evaluator ``fidelity``: squared error to the teacher's end points from the same noise."""

_PREFERRED = ("fid", "fd", "kid", "kd", "energy")
_AGAINST = ("_data", "", "_teacher")


@dataclass(frozen=True)
class Estimate:
    """Mean over ``number`` seeds, and their standard deviation (None for a single one)."""

    mean: float
    deviation: float | None
    number: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Estimate | None:
        """None without any value."""
        found = [value for value in values if value is not None]
        if not found:
            return None
        return cls(mean(found), stdev(found) if len(found) > 1 else None, len(found))


@dataclass(frozen=True)
class Row:
    """One objective, at one value of the sweep.

    Args:
        name: the variant's.
        value: of the sweep; None where it does not matter.
        finished, failed, planned: numbers of runs.
        images: training length; None while it is not known.
        scores: of the student by its number of steps; without those it has no mode for.
        fidelity: of its single step to the teacher.
    """

    name: str
    objective: str
    value: Any
    finished: int
    failed: int
    planned: int
    images: int | None
    forwards_per_image: float | None
    forwards_per_step: float | None
    peak_memory: int | None
    scores: Mapping[int, Estimate]
    fidelity: Estimate | None
    images_per_second: Estimate | None

    @property
    def status(self) -> str:
        """``3 of 3``, ``2 of 3, 1 failed``."""
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.finished} of {self.planned}{failed}"

    @property
    def training_forwards(self) -> float | None:
        """Forward passes of a whole run."""
        if self.images is None or self.forwards_per_image is None:
            return None
        return self.images * self.forwards_per_image

    @property
    def training_seconds(self) -> float | None:
        """Of training steps alone, in a whole run."""
        if self.images is None or self.images_per_second is None:
            return None
        return self.images / self.images_per_second.mean


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
        """The teacher's (or the data's) own score."""
        return self.teacher.get(row, {}).get(self.score or "")

    def title(self, row: str) -> str:
        """A row of the teacher or the data as people name it."""
        return row_title(row, self.evaluation)

    @property
    def teacher_lines(self) -> list[tuple[str, str, str]]:
        """Title, score and fidelity of the teacher's and the data's own rows."""
        columns = (self.score or "", FIDELITY)
        lines = []
        for row, own in self.teacher.items():
            score, fidelity = (f"{own[column]:.4g}" if column in own else "-" for column in columns)
            if (score, fidelity) != ("-", "-"):
                lines.append((self.title(row), score, fidelity))
        return lines


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
    rows = []
    for name, variant in variants.items():
        own = [outcomes[run.name] for run in runs if run.variant is variant]
        rows.append(_row(name, manifest, own, chosen, steps, variant.config.training.batch_size))
    one_teacher = len({variant.evaluation_key for variant in variants.values()}) == 1
    shown = finished[0].scores if finished and one_teacher else {}
    return Table(
        name=manifest.settings["name"],
        score=chosen,
        setting=(manifest.settings["sweep"] or {}).get("setting"),
        steps=steps,
        budget=manifest.settings["budget"] or "the preset's number of images",
        rows=tuple(rows),
        teacher={row: shown[row] for row in (TEACHER, TEACHER_1, DATA) if shown.get(row)},
        errors={name: found.error for name, found in outcomes.items() if found.error is not None},
        evaluation=evaluation,
    )


def default_score(names: Sequence[str]) -> str | None:
    """The first distance to data, else to stored statistics, else to the teacher; else the first score there is."""
    wanted = [f"{prefix}{suffix}" for suffix in _AGAINST for prefix in _PREFERRED]
    other = [name for name in names if name not in COST_COLUMNS]
    return next((name for name in wanted if name in names), other[0] if other else None)


def lower_is_better(score: str) -> bool:
    """Whether the score is one of the known distances."""
    return score == FIDELITY or score.split("_")[0] in _PREFERRED


def _row(
    name: str, manifest: Manifest, own: Sequence[Outcome], score: str | None, steps: Sequence[int], batch_size: int
) -> Row:
    record = manifest.records[name]
    finished = [found for found in own if found.status == FINISHED]

    def estimate(row: str, column: str | None) -> Estimate | None:
        return Estimate.of(found.scores.get(row, {}).get(column or "") for found in finished)

    by_steps = {n: estimate(STUDENT if n == 1 else f"{STUDENT}_{n}_steps", score) for n in steps}
    forwards = record.cost.forwards_per_image if record.cost else None
    return Row(
        name=name,
        objective=record.objective,
        value=record.value,
        finished=len(finished),
        failed=sum(found.status == FAILED for found in own),
        planned=len(own),
        images=record.images,
        forwards_per_image=forwards,
        forwards_per_step=None if forwards is None else forwards * batch_size,
        peak_memory=record.cost.peak_memory if record.cost else None,
        scores={n: found for n, found in by_steps.items() if found is not None},
        fidelity=estimate(STUDENT, FIDELITY),
        images_per_second=Estimate.of(found.images_per_second for found in finished),
    )
