"""What the command line and notebooks call.

>>> import freeflow_core as freeflow
>>> result = freeflow.distill(preset="digits")            # doctest: +SKIP
>>> result.scores["student"]                              # doctest: +SKIP
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from freeflow_core.config import ComponentChoice, RunConfig, RuntimeConfig, load_run_config, to_yaml
from freeflow_core.config.load import merge, parse_assignment, resolve
from freeflow_core.engine.build import Builder, build_components
from freeflow_core.engine.cost import Plan, make_plan
from freeflow_core.engine.device import choose_device, peak_memory, start_accelerator
from freeflow_core.engine.diagnose import Check
from freeflow_core.engine.diagnose import diagnose as _diagnose
from freeflow_core.engine.evaluation import Evaluation, Scores
from freeflow_core.engine.events import Events
from freeflow_core.engine.pictures import grid_image, save_image
from freeflow_core.engine.report import markdown_table
from freeflow_core.engine.run import Run, RunResult
from freeflow_core.engine.sampling import Generator, SampleBatch
from freeflow_core.engine.state import build_state
from freeflow_core.engine.student_file import StudentFile
from freeflow_core.engine.student_file import load_student as _load_student
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import FlowMapSampler, HybridSampler, Teacher
from freeflow_core.plugin import Manager, Registry
from freeflow_core.types import RunInfo

ImageFormat = Literal["png", "npz", "grid"]
__all__ = [
    "Check",
    "Plan",
    "RunResult",
    "SampleResult",
    "diagnose",
    "distill",
    "evaluate",
    "load_student",
    "load_teacher",
    "plan",
    "pretrain",
    "resolve_config",
    "sample",
]


@dataclass(frozen=True)
class SampleResult:
    """Samples on disk, and what they cost: network evaluations and seconds per image."""

    folder: Path
    files: list[Path]
    evaluations: float
    seconds_per_image: float
    images: Tensor = field(repr=False)


def resolve_config(
    command: str,
    *,
    manager: Manager | None = None,
    preset: str | None = None,
    config_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    settings: Iterable[str] = (),
) -> RunConfig:
    """Preset, file, overrides and ``a.b=c`` settings as one validated configuration. Raises ``ConfigError``."""
    registry = Registry(manager or Manager.load())
    return load_run_config(
        registry, command, preset=preset, file=config_file, overrides=overrides, assignments=settings
    )


def distill(
    config: RunConfig | None = None,
    *,
    preset: str | None = None,
    settings: Iterable[str] = (),
    output: Path | None = None,
    resume: bool = False,
    manager: Manager | None = None,
) -> RunResult:
    """Train a student from a teacher, evaluate it, and write the run folder.

    Args:
        config: a resolved configuration; None to resolve ``preset`` (default ``"digits"``) and ``settings`` here.
        output: run folder; None for ``runs/<name>``.
        resume: go on from the newest checkpoint of ``output`` (or of the newest run of that name).

    Raises:
        ConfigError: settings, names or parts that do not fit.
        FreeflowError: interruption, a non-finite step, or a folder that cannot be written.
    """
    return _run("distill", config, preset, settings, output, resume, manager)


def pretrain(
    config: RunConfig | None = None,
    *,
    preset: str | None = None,
    settings: Iterable[str] = (),
    output: Path | None = None,
    resume: bool = False,
    manager: Manager | None = None,
) -> RunResult:
    """Train a teacher from data; arguments and errors as for :func:`distill`."""
    return _run("pretrain", config, preset, settings, output, resume, manager)


def plan(config: RunConfig, *, manager: Manager | None = None) -> Plan:
    """What a run would cost (``--dry-run``): parameters, memory, passes per step. Nothing is trained or written."""
    accelerator = start_accelerator(config.runtime)
    registry = Registry(manager or Manager.load())
    builder = Builder(registry, accelerator.device, config.seed, config.runtime.precision)
    components = build_components(builder, config)
    return make_plan(config, components, build_state(config, components, accelerator), accelerator)


def load_student(path: Path, *, manager: Manager | None = None) -> StudentFile:
    """A trained student from its file or run folder. Raises ``CheckpointError``."""
    return _load_student(Path(path), Registry(manager or Manager.load()))


def load_teacher(
    name: str, *, options: Mapping[str, Any] | None = None, device: str = "cpu", manager: Manager | None = None
) -> Teacher:
    """A frozen teacher by name. Raises ``UnknownComponent``, ``ConfigError`` or ``CheckpointError``."""
    builder = Builder(Registry(manager or Manager.load()), torch.device(device), seed=0)
    return builder.teacher(ComponentChoice(name=name, options=dict(options or {})))


def sample(
    *,
    student: Path | None = None,
    teacher: str | None = None,
    num: int = 100,
    sampler: str | None = None,
    steps: int | None = None,
    guidance_weight: float = 1.0,
    jump_to: float = 0.5,
    labels: Iterable[int] | None = None,
    seed: int = 0,
    batch_size: int = 100,
    output: Path = Path("samples"),
    image_format: ImageFormat = "grid",
    settings: Iterable[str] = (),
    device: str = "auto",
    manager: Manager | None = None,
) -> SampleResult:
    """Draw samples from a student, a teacher, or a student's jump followed by its teacher.

    Args:
        student: a student file or run folder; without one the teacher is sampled.
        teacher: a teacher's name; with a student, the one that goes on after the jump (default: its own).
        sampler: default ``one-step`` with a student, ``heun`` without.
        steps: default 1 with a student, 100 with a teacher, 4 after a jump.
        labels: classes, cycled; None for all in turn.
        settings: ``teacher.option=value``, ``sampler.option=value`` and ``codec.option=value`` strings.

    Raises:
        ConfigError: parts or numbers that do not fit.
    """
    if student is None and teacher is None:
        raise ConfigError("Nothing to sample from: name a --student file or run folder, or a --teacher.")
    if num < 1 or batch_size < 1:
        raise ConfigError(f"The number of samples and the batch size must be at least 1, got {num} and {batch_size}.")
    registry = Registry(manager or Manager.load())
    target = choose_device(RuntimeConfig.model_validate({"device": device}))
    builder = Builder(registry, target, seed)
    loaded = _load_student(student, registry) if student is not None else None
    choices: dict[str, Any] = {
        "sampler": {"name": sampler or ("one-step" if loaded else "heun")},
        "codec": loaded.codec.model_dump(mode="json") if loaded else {"name": "pixels"},
    }
    if teacher is not None:
        choices["teacher"] = {"name": teacher}
    elif loaded is not None and loaded.teacher is not None:
        choices["teacher"] = loaded.teacher.model_dump(mode="json")
    choices = merge_settings(choices, settings)
    used_sampler = builder.build("sampler", ComponentChoice.model_validate(choices["sampler"]))
    with_student, hybrid = isinstance(used_sampler, FlowMapSampler), isinstance(used_sampler, HybridSampler)
    used_teacher = None
    if not with_student:
        if "teacher" not in choices:
            raise ConfigError("This sampler needs a teacher: name one with --teacher.")
        used_teacher = builder.teacher(ComponentChoice.model_validate(choices["teacher"]))
    generator = Generator(
        used_sampler,
        steps or (1 if with_student else 4 if hybrid else 100),
        builder.build("codec", ComponentChoice.model_validate(choices["codec"])),
        teacher=used_teacher,
        student=loaded.student.to(target) if loaded else None,
        seed=seed,
        guidance_weight=guidance_weight,
        jump_to=jump_to,
        labels=tuple(labels) if labels is not None else None,
    )
    return _write_samples(list(generator.batches(0, num, batch_size)), output, image_format)


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
    builder = Builder(registry, accelerator.device, config.seed)
    loaded = _load_student(student, registry) if student is not None else None
    choice = config.teacher or (loaded.teacher if loaded else None)
    teacher = None
    if choice is not None:
        teacher = builder.teacher(choice)
    if loaded is None and teacher is None:
        raise ConfigError("Nothing to evaluate: name a --student file or run folder, or a --teacher.")
    info = RunInfo(
        config.name, "evaluate", output or Path(), config.model_dump(mode="json"), to_yaml(config), resumed=False
    )
    evaluation = Evaluation(
        config,
        builder,
        builder.build("codec", config.codec),
        on_advance=Events(manager, [], info, accelerator.is_main_process).advanced,
        teacher=teacher,
        student=loaded.student.to(accelerator.device) if loaded else None,
        reference_data=builder.build("source", config.reference) if config.reference else None,
    )
    scores: Scores = evaluation.all_rows()
    files: dict[str, Path] = {}
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        files = {"scores": output / "scores.json", "table": output / "scores.md"}
        files["scores"].write_text(json.dumps(scores, indent=1), "utf-8")
        files["table"].write_text(markdown_table(scores, config) + "\n", "utf-8")
    return RunResult(
        output or Path(),
        "finished",
        scores,
        files,
        None,
        time.perf_counter() - began,
        peak_memory(accelerator.device),
    )


def diagnose(manager: Manager | None = None) -> list[Check]:
    """The checks of ``freeflow doctor``."""
    return _diagnose(manager or Manager.load())


def merge_settings(choices: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Lay ``kind.option=value`` strings over component choices. Raises ``ConfigError`` for a kind not used here."""
    merged = dict(choices)
    for text in settings:
        layer = parse_assignment(text)
        if unknown := sorted(layer.keys() - merged.keys()):
            raise ConfigError(
                f"--set {text!r}: there is no {unknown[0]!r} here. Settings start with: {', '.join(merged)}."
            )
        merged = merge(merged, layer)
    return merged


def _run(
    command: str,
    config: RunConfig | None,
    preset: str | None,
    settings: Iterable[str],
    output: Path | None,
    resume: bool,
    manager: Manager | None,
) -> RunResult:
    manager = manager or Manager.load()
    if config is None:
        config = resolve_config(command, manager=manager, preset=preset or "digits", settings=settings)
    elif preset is not None or tuple(settings):
        config = resolve(Registry(manager), _with_settings(config.model_dump(mode="json"), settings))
    return Run(config, command, manager, output=output, resume=resume).execute()


def _with_settings(values: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    merged = dict(values)
    for text in settings:
        merged = merge(merged, parse_assignment(text))
    return merged


def _write_samples(batches: list[SampleBatch], output: Path, image_format: ImageFormat) -> SampleResult:
    images = torch.cat([b.images.cpu() for b in batches])
    total = len(images)
    output.mkdir(parents=True, exist_ok=True)
    if images.ndim != 4:
        path = output / "samples.npz"
        np.savez(path, arr_0=images.numpy())
        files = [path]
    elif image_format == "grid":
        files = [output / "grid.png"]
        save_image(grid_image(images, min(10, total)), files[0])
    elif image_format == "npz":
        files = [output / "samples.npz"]
        np.savez(files[0], arr_0=images.permute(0, 2, 3, 1).numpy())
    else:
        files = [output / f"{i:06d}.png" for i in range(total)]
        for image, path in zip(images, files, strict=True):
            save_image(image, path)
    return SampleResult(
        output,
        files,
        sum(b.num_evaluations * len(b.index) for b in batches) / total,
        sum(b.seconds for b in batches) / total,
        images,
    )
