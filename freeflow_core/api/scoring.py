"""Scores of a student or a teacher, as at the end of a run."""

from __future__ import annotations

import json
import time
from pathlib import Path

from freeflow_core.config import RunConfig, to_yaml
from freeflow_core.engine.build import DTYPES, Builder
from freeflow_core.engine.events import Events
from freeflow_core.engine.process import peak_memory, start_accelerator
from freeflow_core.engine.run import RunResult
from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.report import score_table
from freeflow_core.evaluation.scores import Evaluation
from freeflow_core.evaluation.student_file import load_student
from freeflow_core.files import write_text
from freeflow_core.interfaces import EvaluationContext
from freeflow_core.plugin import Manager, Registry
from freeflow_core.types import RunInfo, Scores


def evaluate(
    config: RunConfig,
    *,
    student: Path | None = None,
    output: Path | None = None,
    manager: Manager | None = None,
) -> RunResult:
    """Score a student (or, without one, the teacher alone) as the end of a run does.

    Args:
        config: what to measure and against what; the training part is not used.
        student: a student file or run folder.
        output: folder for ``scores.json`` and ``scores.md``; None writes nothing.

    Raises:
        ConfigError: nothing to score.
    """
    began = time.perf_counter()
    manager = manager or Manager.load()
    registry = Registry(manager)
    accelerator = start_accelerator(config.runtime)
    builder = Builder(registry, accelerator.device, config.seed, config.runtime.precision)
    dtype = DTYPES[config.runtime.precision]
    loaded = load_student(student, registry) if student is not None else None
    choice = config.teacher or (loaded.teacher if loaded else None)
    teacher = None
    if choice is not None:
        teacher = builder.teacher(choice).to(dtype)
    if loaded is None and teacher is None:
        raise ConfigError("Nothing to evaluate: name a --student file or run folder, or a --teacher.")
    info = RunInfo(
        config.name, "evaluate", output or Path(), config.model_dump(mode="json"), to_yaml(config), resumed=False
    )
    context = EvaluationContext(
        accelerator.device,
        builder.build("codec", config.codec),
        teacher,
        loaded.student.to(device=accelerator.device, dtype=dtype) if loaded else None,
        builder.build("source", config.reference) if config.reference else None,
    )
    events = Events(manager, [], info, accelerator.is_main_process)
    evaluation = Evaluation(config, builder, context, on_advance=events.advanced)
    scores: Scores = evaluation.all_rows()
    files: dict[str, Path] = {}
    if output is not None:
        files = {"scores": output / "scores.json", "table": output / "scores.md"}
        write_text(files["scores"], json.dumps(scores, indent=1))
        write_text(files["table"], "\n".join(score_table(scores, config)) + "\n")
    return RunResult(
        output or Path(),
        "finished",
        scores,
        files,
        None,
        time.perf_counter() - began,
        peak_memory(accelerator.device),
    )
