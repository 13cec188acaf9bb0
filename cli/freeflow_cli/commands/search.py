"""``freeflow search``: best-of-N, screened by the one-step student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column

from freeflow_cli import formats
from freeflow_cli.commands import options
from freeflow_cli.commands.evaluate import saved_config
from freeflow_cli.commands.options import Request
from freeflow_cli.console import stdout
from freeflow_cli.results import make_table, print_files, print_line
from freeflow_cli.session import Session
from freeflow_core.errors import ConfigError


def search(
    context: typer.Context,
    student: options.TrainedStudent = None,
    teacher: options.TeacherName = None,
    candidates: Annotated[int, typer.Option("--candidates", "-N", min=1, help="Noises screened per sample.")] = 16,
    verifier: Annotated[
        str, options.text("--verifier", "NAME", "What ranks them; see freeflow plugins list.")
    ] = "class-probability",
    sampler: Annotated[str, options.text("--sampler", "NAME", "The teacher's.")] = "heun",
    steps: Annotated[int, typer.Option("--steps", min=1, help="The teacher's steps from the best noise.")] = 16,
    guidance_weight: Annotated[float, typer.Option("--guidance-weight", min=0, help="The teacher's.")] = 1.0,
    student_guidance: Annotated[
        float | None, typer.Option("--student-guidance", min=0, help="The student's; default: the teacher's.")
    ] = None,
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="Samples written.")] = 100,
    compare: Annotated[
        int,
        typer.Option("--compare", min=0, metavar="SEEDS", help="Score it beside guided sampling, on so many seeds."),
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Sample i depends on (seed, i) alone.")] = 0,
    preset: options.PresetName = None,
    config: options.ConfigFile = None,
    assignments: Annotated[
        list[str] | None, options.settings("verifier.X=, sampler.X=, or a setting of the run.")
    ] = None,
    output: Annotated[Path, options.folder("Folder to write.")] = Path("search"),
) -> None:
    """Screen noises with the one-step student, rank them, hand the best to the teacher."""
    if student is None:
        raise ConfigError("Nothing to search with. Give --run PATH: the folder of a run, or a student file.")
    session = Session.of(context)
    session.registry(teacher=teacher, verifier=verifier, sampler=sampler)
    if config is None and preset is None:
        config = saved_config(student)
    from freeflow_core.config.load import split_settings

    parts, settings = split_settings(assignments or [], {"verifier": {"name": verifier}, "sampler": {"name": sampler}})
    request = Request("distill", preset=preset, file=config, components={"teacher": teacher}, assignments=settings)
    resolved = request.load(session)
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
            num=num,
            seed=seed,
            compare_seeds=compare,
            output=output,
            manager=session.manager,
        )
    console = stdout()
    if result.rows:
        columns = list(dict.fromkeys(key for row in result.rows.values() for key in row.scores))
        rows = [
            (name, str(row.steps), *(formats.number(row.scores[k][0]) if k in row.scores else "-" for k in columns))
            for name, row in result.rows.items()
        ]
        head = [Column(), *(Column(name, justify="right") for name in ("steps", *columns))]
        console.print(make_table(head, rows, title=f"mean over {compare} seed(s)"))
    print_line(console, f"{num} samples, {formats.number(result.evaluations)} network evaluations each.")
    print_files(console, dict(result.files))
