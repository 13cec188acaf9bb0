"""``freeflow doctor`` and ``freeflow teacher check``: is everything in place, and is a teacher read as it means it?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freeflow_cli import formats
from freeflow_cli.commands import options
from freeflow_cli.console import output
from freeflow_cli.console import output as output_console
from freeflow_cli.results import failed, print_checks, print_files, print_line
from freeflow_cli.session import Session
from freeflow_core.errors import ConfigError

if TYPE_CHECKING:
    from freeflow_core.api import TeacherCheck


def doctor(context: typer.Context, as_json: options.AsJSON = False) -> None:
    """Check the installation, the device, the launch and the plugins. Exit code 1 when something is broken."""
    from freeflow_core import api

    checks = api.diagnose(Session.of(context).manager)
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        print_checks(output(), checks)
    if failed(checks):
        raise typer.Exit(1)


_SHOWN = 3


def teacher_application() -> typer.Typer:
    """The ``teacher`` group."""
    app = typer.Typer(help="Look at teachers.", no_args_is_help=True)
    app.callback()(lambda: None)  # without it a group of one command would be that command
    app.command("check")(check)
    return app


def check(
    context: typer.Context,
    teacher: options.TeacherName = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="File with a section teacher, such as a run's configuration."),
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="teacher.X= or codec.X=value. Repeatable.")
    ] = None,
    num: Annotated[
        int | None, typer.Option("--num", "-n", min=2, help="Samples; default: 16, and more of small states.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=4, help="Midpoint steps, two passes each.")] = 24,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the noise.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for a picture of the samples.")
    ] = Path("teacher-check"),
    precision: options.Precision = "float32",
    device: options.Device = "auto",
    as_json: options.AsJSON = False,
) -> None:
    """Integrate a teacher and measure whether time, sign and scale are right; propose what is. Exit code 1 if not."""
    if teacher is None and config is None:
        raise ConfigError("Nothing to check. Give --teacher NAME, or --config FILE with a section teacher.")
    session = Session.of(context)
    registry = session.registry()
    if teacher is not None:
        registry.component("teacher", teacher)  # a misspelt name is told before torch is imported
    from freeflow_core import api

    result = api.check_teacher(
        teacher,
        config_file=config,
        settings=tuple(assignments or ()),
        num=num,
        steps=steps,
        seed=seed,
        device=device,
        precision=precision,
        output=output,
        manager=session.manager,
    )
    if as_json:
        typer.echo(json.dumps(_as_json(result), indent=1))
    else:
        _print(result)
    if failed(result.checks):
        raise typer.Exit(1)


def _as_json(result: TeacherCheck) -> dict[str, object]:
    return {
        "teacher": result.teacher,
        "right": result.is_right,
        "checks": [asdict(check) for check in result.checks],
        "proposals": [
            {"settings": proposal.settings, "miscalibration": proposal.miscalibration} for proposal in result.proposals
        ],
        "file": None if result.file is None else str(result.file),
    }


def _print(result: TeacherCheck) -> None:
    console = output_console()
    print_checks(console, result.checks)
    if result.proposals:
        several = len(result.proposals) > 1
        print_line(console, f"Read in {'one of these ways' if several else 'this way'} it would be right:")
        for proposal in result.proposals[:_SHOWN]:
            settings = " ".join(f"--set teacher.{name}={_written(value)}" for name, value in proposal.settings.items())
            print_line(console, f"  {settings}   (misses {formats.number(proposal.miscalibration)})")
    if result.file is not None:
        print_files(console, {"samples": result.file})


def _written(value: object) -> str:
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)
