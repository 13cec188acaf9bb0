"""Samples of a student, a teacher, or both: the generator that draws them, and the settings that decide every one."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any, Literal, TypeAlias, final

import numpy as np
import torch
from torch import nn

from freeflow_core.config import ComponentChoice, ComponentConfig, RuntimeConfig
from freeflow_core.config.load import lay_settings, merge, resolve_choice, split_settings
from freeflow_core.engine.build import DTYPES, Builder
from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.pictures import grid_image, save_image
from freeflow_core.evaluation.sampling import Generator, Labels, SampleBatch
from freeflow_core.evaluation.student_file import StudentFile, load_student
from freeflow_core.interfaces import Codec, FlowMapSampler, HybridSampler, Student, Teacher, VelocitySampler
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.sample_files.files import gather, sample_format
from freeflow_core.tools.sample_files.writer import OnSamples, SampleResult, SampleWriter, Team
from freeflow_core.types import NetworkState

Precision: TypeAlias = Literal["float32", "bf16", "float64"]
ImageFormat = Literal["grid", "npz", "png", "webp"]
_log = logging.getLogger(__name__)
_MOST_BYTES_OF_A_GRID = 2**30
MOST_STEPS = 1_000_000


@dataclass(frozen=True)
class SampleRequest:
    """Samples 0 ... ``num`` - 1 of a student, a teacher, or both; None leaves a choice to the parts."""

    num: int
    student: StudentFile | None
    teacher: str | None
    sampler: str | None
    steps: int | None
    guidance_weight: float
    guidance_interval: tuple[float, float]
    jump_to: float
    labels: Labels
    seed: int
    precision: Precision
    assignments: tuple[str, ...]


@final
class PreparedSamples:
    """Everything built for a request: ``generator`` draws its samples.

    ``codec``: one that was built for an earlier request to the same student and device; None builds it.

    Raises ``ConfigError``: parts that do not fit each other.
    """

    def __init__(
        self, request: SampleRequest, registry: Registry, device: torch.device, codec: Codec | None = None
    ) -> None:
        self._request, student = request, request.student
        chosen: dict[str, Any] = {"sampler": {"name": request.sampler or ("one-step" if student else "heun")}}
        if request.teacher is not None:
            chosen["teacher"] = {"name": request.teacher}
        elif student is not None and student.teacher is not None:
            chosen["teacher"] = student.teacher.model_dump(mode="json")
        laid = lay_settings({**chosen, "codec": {}}, request.assignments, closed=True)

        def resolved(kind: str, choice: Any) -> ComponentChoice:
            return resolve_choice(registry, kind, ComponentChoice.model_validate(choice), kind)

        self._choices = {"sampler": resolved("sampler", laid["sampler"])}
        builder = Builder(registry, device, request.seed, request.precision)
        sampler = builder.build("sampler", self._choices["sampler"])
        self._is_hybrid = isinstance(sampler, HybridSampler)
        self._teacher: Teacher | None = None
        if not isinstance(sampler, FlowMapSampler):
            if "teacher" not in chosen:
                raise ConfigError("This sampler needs a teacher: name one with --teacher.")
            self._choices["teacher"] = resolved("teacher", laid["teacher"])
            self._teacher = builder.teacher(self._choices["teacher"])
        choice: Any = {"name": (self._teacher.codec if self._teacher else None) or "pixels"}
        if student is not None:
            choice = student.codec.model_dump(mode="json")
        self._choices["codec"] = resolved("codec", merge({"codec": choice}, {"codec": laid["codec"]})["codec"])
        self._student: Student | None = student.student.to(device) if student else None
        if request.precision == "float64":
            for network in (self._teacher, self._student):
                if network is not None:
                    network.to(DTYPES[request.precision])
        trained = student.trained_guidance if student and not isinstance(sampler, VelocitySampler) else None
        if trained is not None and not trained[0] <= request.guidance_weight <= trained[1]:
            _log.warning(
                "The student was trained %s; what it makes of %g is a guess.",
                "without guidance" if trained == (1, 1) else f"at guidance weights {trained[0]:g} to {trained[1]:g}",
                request.guidance_weight,
            )
        self._steps = request.steps or (4 if self._is_hybrid else 100 if self._teacher else 1)
        low, high = request.guidance_interval
        self.generator = Generator(
            sampler,
            self._steps,
            codec or builder.build("codec", self._choices["codec"]),
            teacher=self._teacher,
            student=self._student,
            seed=request.seed,
            guidance_weight=request.guidance_weight,
            guidance_low=low,
            guidance_high=high,
            jump_to=request.jump_to,
            labels=request.labels,
            precision=request.precision,
        )

    def settings(self) -> dict[str, Any]:
        """All that decides the samples, as JSON. Networks count by their weights, wherever the files lie."""
        request, file, teacher = self._request, self._request.student, None
        student: dict[str, Any] | None = None
        if file is not None and self._student in self.generator.networks:
            name = file.metadata.get("component", type(file.student).__name__)
            student = {"name": name, "network": network_digest(file.student, file.student.network_state())}
        if self._teacher is not None:
            options = self._choices["teacher"].options
            assert isinstance(options, ComponentConfig)
            paths = {name for name, value in options if isinstance(value, Path)}
            teacher = {"name": self._choices["teacher"].name, **options.model_dump(mode="json", exclude=paths)}
            teacher["network"] = network_digest(self._teacher, self._teacher.network_state())
        return {
            "num": request.num,
            "seed": request.seed,
            "labels": request.labels if isinstance(request.labels, str) else list(request.labels),
            "student": student,
            "teacher": teacher,
            "sampler": self._choices["sampler"].model_dump(mode="json"),
            "steps": self._steps,
            "jump_to": request.jump_to if self._is_hybrid else None,
            "guidance_weight": request.guidance_weight,
            "guidance_interval": list(request.guidance_interval),
            "codec": self._choices["codec"].model_dump(mode="json"),
            "precision": request.precision,
        }


def network_digest(network: nn.Module, state: NetworkState | None = None) -> str:
    """Hex digest of all weights and buffers, and of the configuration in ``state``, which says how they are used.

    Equal for equal networks, wherever their file lies.
    """
    digest = hashlib.blake2b(digest_size=16)
    if state is not None:
        digest.update(json.dumps([state.family, dict(state.config)], sort_keys=True, default=str).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_numbers(num: int, batch_size: int, seed: int, steps: int | None, guidance_weight: float | None) -> None:
    """Raises ``ConfigError`` for numbers that no samples can be drawn with; None is no choice."""
    if num < 1 or batch_size < 1:
        raise ConfigError(f"The number of samples and the batch size must be at least 1, got {num} and {batch_size}.")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"The seed must be at least 0 and below 2**63, got {seed}.")
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"The steps must be 1 to {MOST_STEPS:,}, got {steps}.")
    if guidance_weight is not None and not (math.isfinite(guidance_weight) and guidance_weight >= 0):
        raise ConfigError(f"The guidance weight must be a number from 0 up, got {guidance_weight}.")


def sample(
    *,
    student: str | Path | None = None,
    teacher: str | None = None,
    num: int = 100,
    sampler: str | None = None,
    steps: int | None = None,
    guidance_weight: float | None = None,
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
        guidance_weight: None: the weight that the student was scored with; 1, no guidance, of a teacher alone.
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
        raise ConfigError("Nothing to sample from: name a student, by its run's folder or its file, or a teacher.")
    check_numbers(num, batch_size, seed, steps, guidance_weight)
    if (file := next((path for path in (output, *output.parents) if path.is_file()), None)) is not None:
        raise ConfigError(f"The output {output} cannot be a folder, since {file} is a file. Choose another --output.")
    low, high = guidance_interval
    if not 0 <= low <= high <= 1:
        raise ConfigError(f"The guidance interval must be low,high with 0 <= low <= high <= 1, got {low:g},{high:g}.")
    registry = Registry(manager or Manager.load())
    own, settings = split_settings(settings, {"student": {}})
    loaded = load_student(student, registry, own["student"]) if student is not None else None
    if guidance_weight is None:
        guidance_weight = loaded.guidance if loaded else 1.0
    request = SampleRequest(
        student=loaded,
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
        assignments=settings,
    )
    team = Team.join(RuntimeConfig.model_validate({"device": device, "precision": precision}))
    prepared = PreparedSamples(request, registry, team.device)
    if image_format == "grid":
        return _write_grid(prepared.generator, num, batch_size, output, team)
    return SampleWriter(
        output,
        num,
        sample_format(image_format, prepared.generator.sample_shape),
        lambda: {"format": image_format, **prepared.settings()},
        batch_size,
        team,
        on_progress,
    ).write(prepared.generator)


def _write_grid(generator: Generator, num: int, batch_size: int, output: Path, team: Team) -> SampleResult:
    """One picture, drawn by the main process alone: it must fit into memory anyway."""
    if not team.is_main_process:
        return SampleResult(output, [], 0.0, 0.0)

    def small() -> Iterator[SampleBatch]:
        for batch in generator.batches(0, num, batch_size):
            if batch.images[0].nbytes * num > _MOST_BYTES_OF_A_GRID:
                raise ConfigError(
                    f"A grid of {num:,} samples of shape {tuple(batch.images.shape[1:])} is too large for one picture. "
                    "Ask for fewer, or for --format png, --format webp or --format npz, which never hold all in memory."
                )
            yield batch

    drawn = gather(small())
    images = torch.from_numpy(drawn.samples)
    output.mkdir(parents=True, exist_ok=True)
    if images.ndim == 4:
        images, path = images.permute(0, 3, 1, 2), output / "grid.png"
        save_image(grid_image(images, min(10, num)), path)
    else:
        path = output / "samples.npz"
        np.savez(path, arr_0=images.numpy())
    return SampleResult(output, [path], drawn.evaluations / num, median_low(drawn.seconds.tolist()), images=images)
