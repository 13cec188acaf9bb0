"""``freeflow distill``: teacher in, one-step student out."""

from __future__ import annotations

import typer

from freeflow_cli.commands import options
from freeflow_cli.commands.resolution import Request
from freeflow_cli.commands.training import train
from freeflow_cli.session import Session


def distill(
    context: typer.Context,
    teacher: options.TeacherName = None,
    objective: options.ObjectiveName = None,
    student: options.StudentName = None,
    source: options.SourceName = None,
    preset: options.PresetName = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    seed: options.Seed = None,
    output: options.Output = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
) -> None:
    """Distil a teacher into a one-step student. Without options: the digits preset, in minutes on a CPU."""
    request = Request(
        "distill",
        preset=preset,
        file=config,
        components={"teacher": teacher, "objective": objective, "student": student, "source": source},
        seed=seed,
        assignments=tuple(assignments or ()),
        resume_in=output if resume else None,
    )
    train(Session.of(context), request, folder=output, resume=resume, dry_run=dry_run)
