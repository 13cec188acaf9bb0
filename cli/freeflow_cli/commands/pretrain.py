"""``freeflow pretrain``: a teacher of one's own, from data."""

from __future__ import annotations

import typer

from freeflow_cli.commands import options
from freeflow_cli.commands.resolution import Request
from freeflow_cli.commands.training import train
from freeflow_cli.session import Session


def pretrain(
    context: typer.Context,
    source: options.SourceName = None,
    student: options.StudentName = None,
    preset: options.PresetName = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    seed: options.Seed = None,
    output: options.Output = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
) -> None:
    """Train a teacher from data. Without options: the digits preset, in minutes on a CPU."""
    request = Request(
        "pretrain",
        preset=preset,
        file=config,
        components={"source": source, "student": student},
        seed=seed,
        assignments=tuple(assignments or ()),
        resume_in=output if resume else None,
    )
    train(Session.of(context), request, folder=output, resume=resume, dry_run=dry_run)
