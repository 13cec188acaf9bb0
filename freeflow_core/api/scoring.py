"""A student and its teacher after training: scored as at the end of a run, or searched with."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from freeflow_core.api.progress import shown
from freeflow_core.api.results import RunResult
from freeflow_core.api.training import ScoreSettings, settled
from freeflow_core.config import ComponentChoice, RunConfig, to_yaml
from freeflow_core.config.load import saved_config
from freeflow_core.engine.build import DTYPES, Builder
from freeflow_core.engine.events import Events
from freeflow_core.engine.peers import joined
from freeflow_core.engine.process import Crew, peak_memory
from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.report import score_table
from freeflow_core.evaluation.scores import Evaluation
from freeflow_core.evaluation.student_file import load_student
from freeflow_core.files import write_text
from freeflow_core.interfaces import EvaluationContext
from freeflow_core.math.derivative import float32_products
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.search import OnSearched, Search, SearchResult, write_rows
from freeflow_core.types import RunInfo

if TYPE_CHECKING:
    from accelerate import Accelerator


def evaluate(
    config: RunConfig | None = None,
    *,
    student: str | Path | None = None,
    preset: str | None = None,
    settings: Iterable[str] = (),
    output: Path | None = None,
    progress: bool | None = None,
    manager: Manager | None = None,
    **chosen: Unpack[ScoreSettings],
) -> RunResult:
    """Score a student (or, without one, the teacher alone) as the end of a run does.

    Args:
        config: what to measure and against what; the training part is not used. None: that of the student's run; of a
            teacher alone, or with ``preset``, that of the preset.
        student: whatever :func:`load_student` takes.
        settings: laid over it, as in :func:`freeflow_core.api.distill`.
        chosen: likewise.
        output: folder for ``scores.json`` and ``scores.md``; None writes nothing.
        progress: show a bar; None: in a notebook and on a terminal.

    Raises:
        ConfigError: nothing to score, or a student file beside which nothing says what to measure.
    """
    began, manager = time.perf_counter(), manager or Manager.load()
    if config is None and student is None and chosen.get("teacher") is None:
        raise ConfigError("Nothing to evaluate: name a student, by its run's folder or its file, or a teacher.")
    named = config is not None or preset is not None or student is None
    file = None if named else saved_config(Path(str(student)))
    config = settled("distill", manager, config, preset, file, settings, chosen)
    with (
        shown(manager, progress),
        float32_products(config.runtime.matmul_precision),
        joined(config.runtime) as accelerator,
    ):
        return _evaluated(config, accelerator, student, output, manager, began)


def _evaluated(
    config: RunConfig,
    accelerator: Accelerator,
    student: str | Path | None,
    output: Path | None,
    manager: Manager,
    began: float,
) -> RunResult:
    builder, context = _built(config, accelerator, student, manager)
    if context.student is None and context.teacher is None:
        raise ConfigError("Nothing to evaluate: name a student, by its run's folder or its file, or a teacher.")
    folder = output or Path()
    info = RunInfo(config.name, "evaluate", folder, config.model_dump(mode="json"), to_yaml(config), resumed=False)
    events = Events(manager, [], info, accelerator.is_main_process)
    scores = Evaluation(config, builder, context, on_advance=events.advanced).all_rows()
    files: dict[str, Path] = {}
    if output is not None:
        files = {"scores": output / "scores.json", "table": output / "scores.md"}
    if output is not None and accelerator.is_main_process:
        write_text(files["scores"], json.dumps(scores, indent=1))
        write_text(files["table"], "\n".join(score_table(scores, config)) + "\n")
    seconds, memory = time.perf_counter() - began, peak_memory(accelerator.device)
    return RunResult(folder, "finished", scores, files, None, seconds, memory, config, manager)


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
    temperature: float = 0.0,
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
        temperature: 0 takes the best candidate; T above 0 draws one by exp(score / T).
        compare_seeds: 0, or the number of seeds over which the search is scored beside plain sampling.

    Raises:
        ConfigError: parts or numbers that do not fit.
    """
    manager = manager or Manager.load()
    with joined(config.runtime) as accelerator, float32_products(config.runtime.matmul_precision):
        builder, context = _built(config, accelerator, student, manager)
        if context.teacher is None:
            raise ConfigError("Best-of-N search ends with a teacher: name one with --teacher.")
        searching = Search(
            config,
            builder,
            context,
            builder.build("verifier", ComponentChoice.model_validate(verifier)),
            candidates,
            ComponentChoice.model_validate(sampler),
            steps,
            guidance_weight,
            guidance_weight if student_guidance is None else student_guidance,
            temperature,
        )
        batch_size = config.evaluation.batch_size
        result = searching.write_samples(output, num, batch_size, seed, on_progress or (lambda done, total: None))
        if not compare_seeds:
            return result
        first = config.evaluation.seed
        rows = searching.rows(range(first, first + compare_seeds))
        files = builder.crew.from_main(lambda: write_rows(rows, config, output))
        return replace(result, rows=rows, files={**result.files, **files})


def _built(
    config: RunConfig, accelerator: Accelerator, student: str | Path | None, manager: Manager
) -> tuple[Builder, EvaluationContext]:
    """What the configuration names, with a trained student; its own teacher where the configuration has none."""
    registry, device, crew = Registry(manager), accelerator.device, Crew(accelerator)
    builder = Builder(registry, device, config.seed, config.runtime.precision, crew=crew)
    dtype = DTYPES[config.runtime.precision]
    loaded = load_student(student, registry) if student is not None else None
    choice = config.teacher or (loaded.teacher if loaded else None)
    context = EvaluationContext(
        device,
        builder.build("codec", config.codec),
        builder.teacher(choice).to(dtype) if choice else None,
        loaded.student.to(device=device, dtype=dtype) if loaded else None,
        builder.build("source", config.reference) if config.reference else None,
    )
    return builder, context
