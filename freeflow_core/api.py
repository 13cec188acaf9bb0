"""What the command line and notebooks call.

>>> import freeflow_core as freeflow
>>> result = freeflow.distill(preset="digits")            # doctest: +SKIP
>>> result.scores["student"]                              # doctest: +SKIP
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from freeflow_core.config import ComponentChoice, RunConfig, RuntimeConfig, load_run_config, to_yaml
from freeflow_core.config.compare import CompareConfig
from freeflow_core.config.load import merge, parse_assignment, resolve
from freeflow_core.config.load_compare import load_compare_config, parse_sweep
from freeflow_core.engine.build import DTYPES, Builder
from freeflow_core.engine.compare.runner import CompareResult, Comparison
from freeflow_core.engine.compare.said_once import said_once
from freeflow_core.engine.cost import Plan, RolePlan, make_plan
from freeflow_core.engine.device import peak_memory, start_accelerator
from freeflow_core.engine.diagnose import Check
from freeflow_core.engine.diagnose import diagnose as _diagnose
from freeflow_core.engine.encode_latents import (
    Encoded,
    EncodeProgress,
    LatentsEncoder,
    check_encodable,
    encode_choices,
)
from freeflow_core.engine.evaluation import Evaluation, Scores
from freeflow_core.engine.events import Events
from freeflow_core.engine.latents_folder import Job, LatentsFolder, StoredType
from freeflow_core.engine.pictures import grid_image, save_image
from freeflow_core.engine.report import markdown_table
from freeflow_core.engine.run import Run, RunResult
from freeflow_core.engine.sample_files.formats import sample_format
from freeflow_core.engine.sample_files.grid import grid_samples
from freeflow_core.engine.sample_files.request import Precision, PreparedSamples, SampleRequest
from freeflow_core.engine.sample_files.team import Team
from freeflow_core.engine.sample_files.writer import OnSamples, SampleWriter
from freeflow_core.engine.sampling import Generator
from freeflow_core.engine.search.comparison import Search, SearchPlan
from freeflow_core.engine.search.job import OnSearched, SearchResult, write_rows, write_samples
from freeflow_core.engine.student_file import StudentFile
from freeflow_core.engine.student_file import load_student as _load_student
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Source, Teacher
from freeflow_core.plugin import Manager, Registry
from freeflow_core.types import RunInfo
from freeflow_core.weights import OnProgress, WeightStatus, WeightStore

ImageFormat = Literal["grid", "npz", "png", "webp"]
__all__ = [
    "Check",
    "CompareConfig",
    "CompareResult",
    "Encoded",
    "Plan",
    "RolePlan",
    "RunResult",
    "SampleResult",
    "SearchResult",
    "WeightStatus",
    "compare",
    "diagnose",
    "distill",
    "encode",
    "evaluate",
    "export",
    "fetch",
    "list_weights",
    "load_student",
    "load_teacher",
    "plan",
    "pretrain",
    "resolve_config",
    "sample",
    "search",
]


@dataclass(frozen=True)
class SampleResult:
    """Samples on disk, and what they cost.

    ``evaluations`` of the network per image, guided ones counted twice. ``seconds_per_image`` on one device, of
    sampling and decoding, without files and without each process's first batch, which loads and compiles (unless there
    is no other). ``reused`` samples were there from an earlier start. ``images`` holds a grid's; others are on disk.
    """

    folder: Path
    files: list[Path]
    evaluations: float
    seconds_per_image: float
    reused: int = 0
    images: Tensor | None = field(default=None, repr=False)


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


def plan(config: RunConfig, *, num_processes: int | None = None, manager: Manager | None = None) -> Plan:
    """What a run would cost (``--dry-run``): parameters, memory by kind, passes and operations per step.

    Nothing is trained, written or started: neither the device nor the memory nor published weights need to be there.

    Args:
        num_processes: processes that share the batch; None for as many as a launcher started (``WORLD_SIZE``), or one.

    Raises:
        ConfigError: whatever the run itself would refuse.
    """
    if num_processes is None:
        num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    return make_plan(config, Registry(manager or Manager.load()), num_processes)


def load_student(
    name: str | Path, *, options: Mapping[str, Any] | None = None, manager: Manager | None = None
) -> StudentFile:
    """A trained student: from its file, a run's folder, or a published one by name, fetched on first use.

    Args:
        name: a path, or the name of a student that brings weights of its own, such as ``"freeflow-xl-2-256"``.
        options: of such a student, e.g. ``{"checkpoint": path}``.

    Raises:
        CheckpointError: missing, damaged, not a student.
        ConfigError: a name without weights, or options that do not fit.
    """
    return _load_student(name, Registry(manager or Manager.load()), options)


def export(
    name: str | Path, path: Path, *, options: Mapping[str, Any] | None = None, manager: Manager | None = None
) -> str:
    """Write a trained student in its field's published format; what was written, in words.

    Args:
        name, options: as for :func:`load_student`.
        path: the file to write; its suffix names the format, e.g. ``.pt`` or ``.safetensors``.

    Raises:
        ConfigError: a student or suffix without such a format.
        CheckpointError: a student that cannot be read, or a file that cannot be written.
    """
    return load_student(name, options=options, manager=manager).student.export(path)


def load_teacher(
    name: str, *, options: Mapping[str, Any] | None = None, device: str = "cpu", manager: Manager | None = None
) -> Teacher:
    """A frozen teacher by name. Raises ``UnknownComponent``, ``ConfigError`` or ``CheckpointError``."""
    builder = Builder(Registry(manager or Manager.load()), torch.device(device), seed=0)
    return builder.teacher(ComponentChoice(name=name, options=dict(options or {})))


def sample(
    *,
    student: str | Path | None = None,
    teacher: str | None = None,
    num: int = 100,
    sampler: str | None = None,
    steps: int | None = None,
    guidance_weight: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    jump_to: float = 0.5,
    labels: Iterable[int] | Literal["balanced", "random"] | None = None,
    seed: int = 0,
    batch_size: int = 100,
    output: Path = Path("samples"),
    image_format: ImageFormat = "grid",
    precision: Precision = "float32",
    settings: Iterable[str] = (),
    device: str = "auto",
    manager: Manager | None = None,
    on_progress: OnSamples | None = None,
) -> SampleResult:
    """Draw samples from a student, a teacher, or a student's jump followed by its teacher.

    Sample i depends on the seed and i alone. All formats but the grid are written block by block, by as many processes
    as were launched, and the same call goes on where an earlier one stopped.

    Args:
        student: whatever :func:`load_student` takes; without one the teacher is sampled.
        teacher: a teacher's name; with a student, the one that goes on after the jump (default: its own).
        sampler: default ``one-step`` with a student, ``heun`` without.
        steps: default 1 with a student, 100 with a teacher, 4 after a jump.
        guidance_interval: times [low, high] where a teacher is guided.
        labels: classes, cycled; ``"balanced"`` or None: all in turn; ``"random"``: drawn for each index from p(c).
        settings: ``teacher.option=value``, ``sampler.option=value`` and ``codec.option=value`` strings.
        on_progress: called with the number done and the total after each batch, on the main process.

    Raises:
        ConfigError: parts or numbers that do not fit, or an output folder with other samples.
        Interrupted: Ctrl-C; what is finished stays.
        FreeflowError: the disk is full or another process failed; what is finished stays.
    """
    if student is None and teacher is None:
        raise ConfigError("Nothing to sample from: name a --student file or run folder, or a --teacher.")
    if num < 1 or batch_size < 1:
        raise ConfigError(f"The number of samples and the batch size must be at least 1, got {num} and {batch_size}.")
    low, high = guidance_interval
    if not 0 <= low <= high <= 1:
        raise ConfigError(f"The guidance interval must be low,high with 0 <= low <= high <= 1, got {low:g},{high:g}.")
    manager = manager or Manager.load()
    settings, student_options = take_settings(settings, "student")
    request = SampleRequest(
        student=load_student(student, options=student_options, manager=manager) if student is not None else None,
        teacher=teacher,
        num=num,
        sampler=sampler,
        steps=steps,
        guidance_weight=guidance_weight,
        guidance_interval=(low, high),
        jump_to=jump_to,
        labels=labels if isinstance(labels, str) else "balanced" if labels is None else tuple(labels),
        seed=seed,
        precision=precision,
        assignments=tuple(settings),
    )
    team = Team.join(RuntimeConfig.model_validate({"device": device, "precision": precision}))
    prepared = PreparedSamples(request, Registry(manager), team.device)
    if image_format == "grid":
        return _write_grid(prepared.generator, num, batch_size, output, team)
    written = SampleWriter(
        output,
        num,
        sample_format(image_format, prepared.generator.sample_shape),
        lambda: {"format": image_format, **prepared.settings()},
        batch_size,
        team,
        on_progress,
    ).write(prepared.generator)
    return SampleResult(output, written.files, written.evaluations, written.seconds_per_image, written.reused)


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
    loaded = _load_student(student, registry) if student is not None else None
    choice = config.teacher or (loaded.teacher if loaded else None)
    teacher = None
    if choice is not None:
        teacher = builder.teacher(choice).to(dtype)
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
        student=loaded.student.to(device=accelerator.device, dtype=dtype) if loaded else None,
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
    larger: tuple[float, ...] = (1.0, 1.6),
    output: Path = Path("search"),
    on_progress: OnSearched | None = None,
    manager: Manager | None = None,
) -> SearchResult:
    """Screen ``candidates`` noises a sample with the one-step student; the teacher goes on from the best.

    Args:
        config: names the teacher, the codec and the reference data; its ``evaluation`` says how rows are scored.
        student: whatever :func:`load_student` takes.
        verifier, sampler: a component's name, or ``{"name": ..., option: ...}``.
        steps: the teacher's.
        guidance_weight: the teacher's; inside ``evaluation.guidance_low`` ... ``guidance_high``.
        student_guidance: the student's input; None for the teacher's.
        compare_seeds: 0, or the number of seeds over which the search is scored beside plain sampling.
        larger: budgets of plain sampling to compare with, as multiples of the search's evaluations.

    Raises:
        ConfigError: parts or numbers that do not fit.
    """
    manager = manager or Manager.load()
    registry = Registry(manager)
    accelerator = start_accelerator(config.runtime)
    builder = Builder(registry, accelerator.device, config.seed)
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
        larger,
    )
    searching = Search(
        config,
        plan,
        builder,
        student=loaded.student.to(accelerator.device),
        teacher=builder.teacher(choice),
        codec=builder.build("codec", config.codec),
        verifier=builder.build("verifier", ComponentChoice.model_validate(verifier)),
        reference=builder.build("source", config.reference) if config.reference else None,
    )
    batch_size = config.evaluation.batch_size
    result = write_samples(searching, plan, output, num, batch_size, seed, on_progress or (lambda done, total: None))
    if not compare_seeds:
        return result
    first = config.evaluation.seed
    rows = searching.rows(range(first, first + compare_seeds))
    return replace(result, rows=rows, files={**result.files, **write_rows(rows, config, output)})


def compare(
    config: CompareConfig | None = None,
    *,
    teacher: str | None = None,
    objectives: Iterable[str] = (),
    seeds: int | None = None,
    budget: str | None = None,
    source: str | None = None,
    preset: str | None = None,
    config_file: Path | None = None,
    settings: Iterable[str] = (),
    settings_for: Iterable[str] = (),
    sweep: str | None = None,
    output: Path | None = None,
    dry_run: bool = False,
    manager: Manager | None = None,
) -> CompareResult:
    """Train several objectives on one teacher with one budget, score them alike, and put them into one table.

    The same call again goes on where an earlier one stopped; what is finished is not repeated.

    Args:
        config: a resolved comparison; None to resolve the arguments up to ``sweep`` here, over ``preset`` and
            ``config_file`` (without either: ``"digits"``).
        objectives: names.
        seeds: runs of each objective; None: the preset's, else 3.
        budget: ``"images=N"``, ``"seconds=N"`` or ``"forwards=N"`` of training; None: the preset's.
        source: data for the objectives that train on data.
        settings: ``a.b=c`` strings for all runs; ``settings_for``: ``objective:a.b=c`` strings for one objective's.
        sweep: ``a.b=v1,v2,...``: a setting that takes several values in turn.
        output: the comparison's folder; None for ``runs/compare-<name>``.
        dry_run: measure what each objective costs, and train and write nothing.

    Raises:
        ConfigError: settings, names or parts that do not fit, or a folder with another comparison.
        Interrupted: Ctrl-C; what is finished stays.
        FreeflowError: a full disk; what is finished stays. A run that fails raises nothing: see ``failed``.
    """
    manager = manager or Manager.load()
    if config is None:
        names = {"teacher": teacher, "source": source}
        config = load_compare_config(
            Registry(manager),
            preset=preset if preset or config_file else "digits",
            file=config_file,
            overrides={kind: {"name": name} for kind, name in names.items() if name},
            comparison={
                "objectives": tuple(objectives) or None,
                "seeds": seeds,
                "budget": budget,
                "sweep": None if sweep is None else parse_sweep(sweep),
            },
            assignments=settings,
            assignments_for=settings_for,
        )
    with said_once():
        comparison = Comparison(config, manager, output)
        return comparison.plan() if dry_run else comparison.execute()


def encode(
    *,
    source: str,
    codec: str = "sd-vae",
    output: Path = Path("latents"),
    settings: Iterable[str] = (),
    num: int | None = None,
    flip: bool = False,
    batch_size: int = 32,
    shard_size: int = 4096,
    dtype: StoredType = "float32",
    device: str = "auto",
    on_progress: EncodeProgress | None = None,
    manager: Manager | None = None,
) -> Encoded:
    """Compute the states of a source's images once, for training with the source ``latents``.

    A folder with a part of the same job is gone on with, and a complete one left as it is. Under a launcher the
    shards are shared out between the processes.

    Args:
        settings: ``source.option=value`` and ``codec.option=value`` strings.
        num: images to encode, from the source's first on; None for all of its training images.
        flip: encode the mirrored images too.
        batch_size: images the codec gets at once.
        shard_size: images in a file.
        dtype: type the states are stored in.
        on_progress: told images done and images to do, of this process.

    Raises:
        ConfigError: parts or numbers that do not fit; a folder that holds another job.
        Interrupted: Ctrl-C or SIGTERM; what is whole stays.
        FreeflowError: states that are not finite, or a full disk.
    """
    if batch_size < 1 or shard_size < 1:
        raise ConfigError(f"The batch and shard sizes must be at least 1, got {batch_size} and {shard_size}.")
    registry = Registry(manager or Manager.load())
    chosen = encode_choices(registry, source, codec, settings)
    accelerator = start_accelerator(RuntimeConfig.model_validate({"device": device}))
    builder = Builder(registry, accelerator.device, seed=0)
    images: Source = builder.build("source", chosen["source"])
    described = {kind: choice.model_dump(mode="json") for kind, choice in chosen.items()}
    job = Job(described["source"], described["codec"], check_encodable(source, images, num), shard_size, flip, dtype)
    encoder = LatentsEncoder(LatentsFolder(output, job), accelerator)
    network = builder.build("codec", chosen["codec"], source=images)
    return encoder.run(images, network, batch_size, on_progress or (lambda done, total: None))


def list_weights(*, manager: Manager | None = None) -> list[WeightStatus]:
    """All published weights that the plugins offer, and whether they are in the cache."""
    store = WeightStore()
    return [store.status(weight) for weight in Registry(manager or Manager.load()).weights().values()]


def fetch(
    name: str,
    *,
    force: bool = False,
    from_file: Path | None = None,
    on_progress: OnProgress | None = None,
    manager: Manager | None = None,
) -> Path:
    """Path of published weights, by name; downloaded into the cache unless they are there.

    Args:
        force: download even then.
        from_file: copy this file into the cache, checked, rather than download.
        on_progress: ``on_progress(done, total)`` in bytes; ``total`` may be None. Called often.

    Raises:
        UnknownComponent: no plugin offers weights of this name.
        DownloadError: they cannot be fetched; the message says why and what to do.
        Interrupted: Ctrl-C; what has arrived is kept for the next call.
    """
    weight, store = Registry(manager or Manager.load()).weight(name), WeightStore()
    if from_file is not None:
        return store.add(weight, from_file, on_progress=on_progress)
    return store.fetch(weight, force=force, on_progress=on_progress)


def diagnose(manager: Manager | None = None) -> list[Check]:
    """The checks of ``freeflow doctor``."""
    return _diagnose(manager or Manager.load())


def take_settings(settings: Iterable[str], kind: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The settings that are not ``kind.option=value``, and those that are, as options."""
    rest: list[str] = []
    options: dict[str, Any] = {}
    for text in settings:
        if text.startswith(f"{kind}."):
            options = merge(options, parse_assignment(text)[kind])
        else:
            rest.append(text)
    return tuple(rest), options


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


def _write_grid(generator: Generator, num: int, batch_size: int, output: Path, team: Team) -> SampleResult:
    """One picture, drawn by the main process alone: it must fit into memory anyway."""
    if not team.is_main:
        return SampleResult(output, [], 0.0, 0.0)
    images, cost = grid_samples(generator, num, batch_size)
    output.mkdir(parents=True, exist_ok=True)
    if images.ndim == 4:
        path = output / "grid.png"
        save_image(grid_image(images, min(10, num)), path)
    else:
        path = output / "samples.npz"
        np.savez(path, arr_0=images.numpy())
    return SampleResult(output, [path], cost.evaluations_each, cost.seconds_each, images=images)
