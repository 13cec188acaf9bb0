"""``freeflow config``: what a run would be configured as."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from freeflow_cli.commands import options
from freeflow_cli.commands.resolution import Request
from freeflow_cli.session import Session


class Command(str, Enum):
    """The commands that take a run configuration."""

    DISTILL = "distill"
    PRETRAIN = "pretrain"


def application() -> typer.Typer:
    """The ``config`` group."""
    app = typer.Typer(help="Look at run configurations.", no_args_is_help=True)
    app.callback()(_group)
    app.command("show")(show)
    return app


def _group() -> None:
    """Look at run configurations."""


def show(
    context: typer.Context,
    command: Annotated[Command, typer.Option("--command", help="Whose presets and defaults.")] = Command.DISTILL,
    teacher: options.TeacherName = None,
    objective: options.ObjectiveName = None,
    student: options.StudentName = None,
    source: options.SourceName = None,
    preset: options.PresetName = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    seed: options.Seed = None,
    as_json: options.AsJSON = False,
) -> None:
    """Print the resolved configuration, every default written out. The output is a valid --config file."""
    from freeflow_core.config import to_yaml

    request = Request(
        command.value,
        preset=preset,
        file=config,
        components={"teacher": teacher, "objective": objective, "student": student, "source": source},
        seed=seed,
        assignments=tuple(assignments or ()),
    )
    resolved = request.load(Session.of(context))
    typer.echo(resolved.model_dump_json(indent=2) if as_json else to_yaml(resolved).rstrip("\n"))
