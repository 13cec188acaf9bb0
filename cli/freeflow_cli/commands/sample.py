"""``freeflow sample``: images from a run, a student file or a teacher."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from freeflow_cli import formats
from freeflow_cli.commands import options
from freeflow_cli.console import output as output_console
from freeflow_cli.results import print_files, print_line
from freeflow_cli.session import Session
from freeflow_core.errors import ConfigError


class ImageFormat(str, Enum):
    """How samples are written."""

    PNG = "png"
    NPZ = "npz"
    GRID = "grid"


class Device(str, Enum):
    """Where samples are drawn."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


def sample(
    context: typer.Context,
    student: options.TrainedStudent = None,
    teacher: options.TeacherName = None,
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="Number of samples.")] = 100,
    sampler: Annotated[
        str | None, typer.Option("--sampler", metavar="NAME", help="Default: one-step; for a teacher heun.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Default: 1; for a teacher 100.")] = None,
    guidance_weight: Annotated[float, typer.Option("--guidance-weight", min=0, help="1: no guidance.")] = 1.0,
    jump_to: Annotated[
        float, typer.Option("--jump-to", help="Time in (0, 1) where the teacher takes over from the student's jump.")
    ] = 0.5,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="LIST", help="Classes in turn, e.g. 3 or 0,2,5-9; default: all.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Sample i depends on (seed, i) alone.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples drawn at once.")] = 100,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")] = Path("samples"),
    image_format: Annotated[
        ImageFormat, typer.Option("--format", help="One file each, one array, or one picture.")
    ] = ImageFormat.GRID,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="teacher.X=, sampler.X= or codec.X=value. Repeatable."),
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="auto: cuda, else mps, else cpu.")] = Device.AUTO,
) -> None:
    """Draw samples from the student of a run or file, or from a teacher."""
    if student is None and teacher is None:
        raise ConfigError(
            "Nothing to sample from. Give --run PATH (the folder of a run, or a student file) or --teacher NAME."
        )
    session = Session.of(context)
    registry = session.registry()
    for kind, name in (("teacher", teacher), ("sampler", sampler)):
        if name is not None:
            registry.component(kind, name)  # a misspelt name is told before torch is imported
    if not 0 < jump_to < 1:
        raise ConfigError(f"--jump-to {jump_to:g} must lie between 0 (data) and 1 (noise).")
    chosen = parse_labels(labels) if labels is not None else None
    from freeflow_core import api

    result = api.sample(
        student=student,
        teacher=teacher,
        num=num,
        sampler=sampler,
        steps=steps,
        guidance_weight=guidance_weight,
        jump_to=jump_to,
        labels=chosen,
        seed=seed,
        batch_size=batch_size,
        output=output,
        image_format=image_format.value,
        settings=tuple(assignments or ()),
        device=device.value,
        manager=session.manager,
    )
    console = output_console()
    files = {file.name: file for file in result.files} if len(result.files) <= 4 else {"folder": result.folder}
    print_line(
        console,
        f"{num} samples, {formats.number(result.evaluations)} network evaluations and "
        f"{formats.number(1000 * result.seconds_per_image)} ms each.",
    )
    print_files(console, files or {"folder": result.folder})


def parse_labels(text: str) -> list[int]:
    """``"0,2,5-9"`` to class numbers. Raises :class:`ConfigError` for anything else."""
    labels: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ConfigError(f"--labels {text!r} is not a list of classes; expected numbers and ranges, e.g. 0,2,5-9.")
        labels.extend(range(int(first), int(last) + 1) if dash else [int(first)])
    return labels
