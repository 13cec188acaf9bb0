"""Best-of-N search: a student screens noises, the teacher goes on from the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from freeflow_core.api.networks import load_student
from freeflow_core.config import ComponentChoice, RunConfig
from freeflow_core.engine.build import DTYPES, Builder
from freeflow_core.engine.process import start_accelerator
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import EvaluationContext
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.search.comparison import OnSearched, Search, SearchPlan, SearchResult, write_rows


def search(
    config: RunConfig,
    *,
    student: str | Path,
    candidates: int = 16,
    verifier: str | Mapping[str, Any] = "class-probability",
    sampler: str | Mapping[str, Any] = "heun",
    steps: int = 16,
    guidance_weight: float = 1.0,
    student_guidance: float | None = None,
    num: int = 100,
    seed: int = 0,
    compare_seeds: int = 0,
    output: Path = Path("search"),
    on_progress: OnSearched | None = None,
    manager: Manager | None = None,
) -> SearchResult:
    """Screen ``candidates`` noises a sample with the one-step student; the teacher goes on from the best.

    Args:
        config: names the teacher, the codec and the reference data; its ``evaluation`` says how rows are scored.
        student: whatever :func:`load_student` takes.
        verifier: a component's name, or ``{"name": ..., option: ...}``.
        sampler: the teacher's, likewise.
        steps: the teacher's.
        guidance_weight: the teacher's; inside ``evaluation.guidance_low`` ... ``guidance_high``.
        student_guidance: the student's input; None for the teacher's.
        compare_seeds: 0, or the number of seeds over which the search is scored beside plain sampling.

    Raises:
        ConfigError: parts or numbers that do not fit.
    """
    manager = manager or Manager.load()
    registry = Registry(manager)
    accelerator = start_accelerator(config.runtime)
    builder = Builder(registry, accelerator.device, config.seed, config.runtime.precision)
    dtype = DTYPES[config.runtime.precision]
    loaded = load_student(student, manager=manager)
    choice = config.teacher or loaded.teacher
    if choice is None:
        raise ConfigError("Best-of-N search ends with a teacher: name one with --teacher.")
    plan = SearchPlan(
        candidates,
        ComponentChoice.model_validate(sampler),
        steps,
        guidance_weight,
        guidance_weight if student_guidance is None else student_guidance,
    )
    context = EvaluationContext(
        accelerator.device,
        builder.build("codec", config.codec),
        builder.teacher(choice).to(dtype),
        loaded.student.to(device=accelerator.device, dtype=dtype),
        builder.build("source", config.reference) if config.reference else None,
    )
    built = builder.build("verifier", ComponentChoice.model_validate(verifier))
    searching = Search(config, plan, builder, context, built)
    batch_size = config.evaluation.batch_size
    result = searching.write_samples(output, num, batch_size, seed, on_progress or (lambda done, total: None))
    if not compare_seeds:
        return result
    first = config.evaluation.seed
    rows = searching.rows(range(first, first + compare_seeds))
    return replace(result, rows=rows, files={**result.files, **write_rows(rows, config, output)})
