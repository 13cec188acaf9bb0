"""``freeflow sample`` and ``encode``: images of a student or teacher, and latents of a source, as files."""

import shlex
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

import typer

from freeflow_cli.commands import options
from freeflow_cli.console import is_main_process, print_files, print_line, print_next, shown_path
from freeflow_cli.session import Session
from freeflow_cli.tables import number
from freeflow_core.errors import ConfigError

_MOST_LABELS = 1_000_000


def sample(
    context: typer.Context,
    student: options.TrainedStudent = None,
    teacher: options.TeacherName = None,
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="Number of samples.")] = 100,
    sampler: Annotated[str | None, options.text("--sampler", "NAME", "Default: one-step; for a teacher heun.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Default: 1; for a teacher 100.")] = None,
    guidance_weight: Annotated[
        float | None, typer.Option(min=0, help="1: none. Default: what the student was scored with; 1 for a teacher.")
    ] = None,
    guidance_interval: Annotated[str, options.value("LOW,HIGH", "Times in [0, 1] where a teacher is guided.")] = "0,1",
    jump_to: Annotated[float, typer.Option(help="Time in (0, 1) where the teacher takes over from a jump.")] = 0.5,
    labels: Annotated[
        str,
        options.text(
            "--labels",
            "balanced|random|LIST",
            "All classes in turn, one drawn for each index, or those of a list in turn, e.g. 3 or 0,2,5-9.",
        ),
    ] = "balanced",
    seed: options.SampleSeed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples drawn at once.")] = 100,
    output: Annotated[Path, options.folder("Folder to write, or to go on with (all but grid).")] = Path("samples"),
    image_format: Annotated[
        Literal["grid", "npz", "png", "webp"],
        typer.Option("--format", help="One picture, one array for evaluators, or one file each."),
    ] = "grid",
    precision: options.Precision = "float32",
    assignments: Annotated[list[str] | None, options.settings("teacher.X=, sampler.X= or codec.X=value.")] = None,
    device: options.Device = "auto",
) -> None:
    """Draw samples from the student of a run or file, or from a teacher. Stopped early, the same command goes on."""
    if student is None and teacher is None:
        raise ConfigError("Nothing to sample from. Give --run PATH (a run's folder or student file) or --teacher NAME.")
    session = Session.of(context)
    session.registry(teacher=teacher, sampler=sampler)
    if not 0 < jump_to < 1:
        raise ConfigError(f"--jump-to {jump_to:g} must lie between 0 (data) and 1 (noise).")
    chosen, interval = parse_labels(labels), parse_interval(guidance_interval)
    from freeflow_cli.progress import CountProgress

    with Session.loading():
        from freeflow_core import api

    with closing(CountProgress("sample")) as progress:
        result = api.sample(
            student=student,
            teacher=teacher,
            num=num,
            sampler=sampler,
            steps=steps,
            guidance_weight=guidance_weight,
            guidance_interval=interval,
            jump_to=jump_to,
            labels=chosen,
            seed=seed,
            batch_size=batch_size,
            output=output,
            image_format=image_format,
            precision=precision,
            settings=tuple(assignments or ()),
            device=device,
            manager=session.manager,
            on_progress=progress.advance,
        )
    if is_main_process():
        evaluations, milliseconds = number(result.evaluations), number(1000 * result.seconds_per_image)
        reused = f" {'All' if result.reused == num else f'{result.reused:,}'} of them were there already."
        costs = f"{evaluations} network evaluations and {milliseconds} ms each"
        print_line(f"{num:,} samples, {costs}.{reused if result.reused else ''}")
        few = len(result.files) <= 4
        print_files({file.name: file for file in result.files} if few else {"folder": result.folder})


def parse_labels(text: str) -> list[int] | Literal["balanced", "random"]:
    """``balanced``, ``random``, or ``0,2,5-9`` as class numbers. Raises :class:`ConfigError` for anything else."""
    if text in ("balanced", "random"):
        return "balanced" if text == "balanced" else "random"
    labels: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ConfigError(
                f"--labels {text!r} is not a list of classes; expected balanced, random, or numbers and ranges, e.g. "
                "0,2,5-9."
            )
        span = range(int(first), int(last) + 1) if dash else [int(first)]
        if len(part) > 20 or len(labels) + len(span) > _MOST_LABELS:
            raise ConfigError(f"--labels {text!r} names more than {_MOST_LABELS:,} classes; name those of the model.")
        labels.extend(span)
    return labels


def parse_interval(text: str) -> tuple[float, float]:
    """``"0.2,0.9"`` as two times. Raises :class:`ConfigError` unless 0 <= low <= high <= 1."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise ConfigError(
            f"--guidance-interval {text!r} is not an interval of times; expected LOW,HIGH with "
            "0 <= LOW <= HIGH <= 1, e.g. 0,0.7."
        )
    return low, high


def encode(
    context: typer.Context,
    source: options.SourceName = None,
    codec: options.CodecName = "sd-vae",
    assignments: Annotated[list[str] | None, options.settings("source.X= or codec.X=value.")] = None,
    output: Annotated[Path, options.folder("Folder to write.")] = Path("latents"),
    num: Annotated[int | None, typer.Option("--num", "-n", min=1, help="Images to encode; default: all.")] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Encode the mirrored images too.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images the codec gets at once.")] = 32,
    shard_size: Annotated[int, typer.Option(min=1, help="Images in a file.")] = 4096,
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="Type the latents are stored in.")] = "float32",
    device: options.Device = "auto",
) -> None:
    """Compute the latents of a source's images once, for the source `latents`. Run it again to go on."""
    if source is None:
        raise ConfigError(
            "Nothing to encode. Name the images: --source image-folder --set source.path=FOLDER. "
            "`freeflow plugins list --kind source` shows all sources."
        )
    session = Session.of(context)
    session.registry(source=source, codec=codec)
    from freeflow_cli.progress import CountProgress

    with Session.loading():
        from freeflow_core import api

    with closing(CountProgress("encode")) as progress:
        result = api.encode(
            source=source,
            codec=codec,
            output=output,
            settings=tuple(assignments or ()),
            num=num,
            flip=flip,
            batch_size=batch_size,
            shard_size=shard_size,
            dtype=dtype,
            device=device,
            on_progress=progress.advance,
            manager=session.manager,
        )
    if not is_main_process():
        return
    shape, folder = " x ".join(map(str, result.state_shape)), shown_path(result.folder)
    print_line(f"{result.num_images:,} latents of {shape} in {result.num_shards:,} shards.")
    if not result.written:
        print_line("They were all there already.")
    print_line(f"Written: {folder}")
    settings = [f"source.path={folder}", f"codec={codec}", *(a for a in assignments or () if a.startswith("codec."))]
    settings += ["reference=null", "evaluation.enabled=false"]
    given = [part for setting in settings for part in ("--set", setting)]
    print_next([shlex.join(["freeflow", "pretrain", "--source", "latents", *given])])
