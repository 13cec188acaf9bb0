"""The runs of a comparison, and what each has come to, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from freeflow_core.config import RunConfig
from freeflow_core.engine.run_folder import RunFolder
from freeflow_core.tools.compare.variants import Variant
from freeflow_core.types import Scores

FINISHED, FAILED, UNFINISHED, WAITING = "finished", "failed", "unfinished", "waiting"


@dataclass(frozen=True)
class PlannedRun:
    """One objective, one value of the sweep, one seed."""

    name: str
    variant: Variant
    seed: int
    folder: Path

    def config(self, run: RunConfig) -> RunConfig:
        """``run``, the variant's of the right length, with this run's name and seed."""
        return run.model_copy(update={"name": self.name, "seed": self.seed})


@dataclass(frozen=True)
class Outcome:
    """How far a run has come.

    Args:
        status: ``finished``, ``failed``, ``unfinished`` (begun, and not at its end), or ``waiting``.
        scores: rows of scores, once finished.
        images_per_second: of training, without evaluation: the median of what was logged.
    """

    status: str
    scores: Scores = field(default_factory=dict)
    images_per_second: float | None = None
    error: str | None = None


def planned_runs(variants: Sequence[Variant], num_seeds: int, folder: Path) -> tuple[PlannedRun, ...]:
    """Every variant with the first seed, then every variant with the next: an early look sees all of them."""
    return tuple(
        PlannedRun(name, variant, seed, folder / name)
        for number in range(num_seeds)
        for variant in variants
        for seed in [variant.config.seed + number]
        for name in [f"{variant.name}-seed{seed}"]
    )


def outcome(run: PlannedRun, errors: Mapping[str, str]) -> Outcome:
    """What the run's folder says; the folder of a finished run has its scores, or it counts as unfinished."""
    folder = RunFolder(run.folder)
    status = folder.read_status().get("status")
    scores = _read_scores(folder.scores_file)
    if status == FINISHED and scores:
        return Outcome(FINISHED, scores, _images_per_second(folder.metrics_file))
    if run.name in errors:
        return Outcome(FAILED, error=errors[run.name])
    return Outcome(WAITING if status is None else UNFINISHED)


def _read_scores(path: Path) -> Scores:
    try:
        scores: Scores = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return scores


def _images_per_second(path: Path) -> float | None:
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError):
        return None
    values = [float(line["images_per_second"]) for line in lines if "images_per_second" in line]
    return median(values) if values else None
