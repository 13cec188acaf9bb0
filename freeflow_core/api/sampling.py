"""Samples of a student, a teacher, or both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median_low
from typing import Literal

import numpy as np
import torch

from freeflow_core.api.networks import load_student
from freeflow_core.config import RuntimeConfig
from freeflow_core.config.load import split_settings
from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.pictures import grid_image, save_image
from freeflow_core.evaluation.sampling import Generator, SampleBatch
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.sample_files.files import gather, sample_format
from freeflow_core.tools.sample_files.request import Precision, PreparedSamples, SampleRequest
from freeflow_core.tools.sample_files.writer import OnSamples, SampleResult, SampleWriter, Team

ImageFormat = Literal["grid", "npz", "png", "webp"]
_MOST_BYTES_OF_A_GRID = 2**30


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
    own, settings = split_settings(settings, {"student": {}})
    request = SampleRequest(
        student=load_student(student, options=own["student"], manager=manager) if student is not None else None,
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
    prepared = PreparedSamples(request, Registry(manager), team.device)
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
                    "Ask for fewer, or for --format png, webp or npz, which never hold all of them in memory."
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
