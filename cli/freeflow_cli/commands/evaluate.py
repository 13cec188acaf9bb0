"""``freeflow evaluate`` and ``search``: a trained student scored again, or screening noises for its teacher."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column

from freeflow_cli.commands import options
from freeflow_cli.commands.options import Request
from freeflow_cli.console import print_files, print_line, print_result, stdout
from freeflow_cli.session import Session
from freeflow_cli.tables import make_table, number
from freeflow_core.errors import ConfigError


def evaluate(
    context: typer.Context,
    student: options.TrainedStudent = None,
    teacher: options.TeacherName = None,
    preset: options.PresetName = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    output: Annotated[Path | None, options.folder("Write scores.json and scores.md here.")] = None,
) -> None:
    """Score a student, or a teacher alone, as the end of a run does. A run folder brings its own configuration."""
    if student is None and teacher is None:
        raise ConfigError("Nothing to evaluate. Give --run PATH (a run's folder, or a student file) or --teacher NAME.")
    from freeflow_core.config.load import saved_config

    session = Session.of(context)
    if config is None and preset is None and student is not None:
        config = saved_config(student)
    request = Request("distill", preset, config, {"teacher": teacher}, assignments=tuple(assignments or ()))
    resolved = request.load(session)
    with Session.loading():
        from freeflow_core import api

    with session.progress():
        result = api.evaluate(resolved, student=student, output=output, progress=False, manager=session.manager)
    print_result(result, "evaluate", resolved)


def search(
    context: typer.Context,
    student: options.TrainedStudent = None,
    teacher: options.TeacherName = None,
    candidates: Annotated[int, typer.Option("--candidates", "-N", min=1, help="Noises screened per sample.")] = 16,
    verifier: Annotated[str, options.value("NAME", "Ranks them; see freeflow plugins list.")] = "class-probability",
    sampler: Annotated[str, options.text("--sampler", "NAME", "The teacher's.")] = "heun",
    steps: Annotated[int, typer.Option(min=1, help="The teacher's steps from the best noise.")] = 16,
    guidance_weight: Annotated[float, typer.Option(min=0, help="The teacher's.")] = 1.0,
    student_guidance: Annotated[float | None, typer.Option(min=0, help="Default: the teacher's.")] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="0: the best candidate; above: drawn by exp(score / temperature).")
    ] = 0.0,
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="Samples written.")] = 100,
    compare: Annotated[
        int, typer.Option(min=0, metavar="SEEDS", help="Score it beside guided sampling, on so many seeds.")
    ] = 0,
    seed: options.SampleSeed = 0,
    preset: options.PresetName = None,
    config: options.ConfigFile = None,
    assignments: Annotated[list[str] | None, options.settings("verifier.X=, sampler.X=, or a run's setting.")] = None,
    output: Annotated[Path, options.folder("Folder to write.")] = Path("search"),
) -> None:
    """Screen noises with the one-step student, rank them, hand the best to the teacher."""
    if student is None:
        raise ConfigError("Nothing to search with. Give --run PATH: the folder of a run, or a student file.")
    session = Session.of(context)
    session.registry(teacher=teacher, verifier=verifier, sampler=sampler)
    from freeflow_core.config.load import saved_config, split_settings

    if config is None and preset is None:
        config = saved_config(student)

    parts, settings = split_settings(assignments or [], {"verifier": {"name": verifier}, "sampler": {"name": sampler}})
    resolved = Request("distill", preset, config, {"teacher": teacher}, assignments=settings).load(session)
    with Session.loading():
        from freeflow_core import api

    with session.progress():
        result = api.search(
            resolved,
            student=student,
            candidates=candidates,
            verifier=parts["verifier"],
            sampler=parts["sampler"],
            steps=steps,
            guidance_weight=guidance_weight,
            student_guidance=student_guidance,
            temperature=temperature,
            num=num,
            seed=seed,
            compare_seeds=compare,
            output=output,
            manager=session.manager,
        )
    if result.rows:
        columns = list(dict.fromkeys(key for row in result.rows.values() for key in row.scores))
        rows = [
            (name, str(row.steps), *(number(row.scores[k][0]) if k in row.scores else "-" for k in columns))
            for name, row in result.rows.items()
        ]
        head = [Column(), *(Column(name, justify="right") for name in ("steps", *columns))]
        stdout().print(make_table(head, rows, title=f"mean over {compare} seed(s)"))
    print_line(f"{num} samples, {number(result.evaluations)} network evaluations each.")
    print_files(result.files)
