"""``freeflow doctor`` and ``freeflow teacher check``: is everything in place, and is a teacher read as it means it?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freeflow_cli.commands import options
from freeflow_cli.console import print_checks, print_files, print_json, print_line
from freeflow_cli.session import Session
from freeflow_cli.tables import number
from freeflow_core.errors import ConfigError

if TYPE_CHECKING:
    from freeflow_core.types import Check


def doctor(
    context: typer.Context,
    measure: Annotated[
        str | None,
        options.text("--measure", "PRESET", "Also take steps of this run: what each derivative costs and errs here."),
    ] = None,
    assignments: Annotated[list[str] | None, options.settings("What is changed of it, with --measure.")] = None,
    as_json: options.AsJSON = False,
) -> None:
    """Check the installation, the device, the launch and the plugins. Exit code 1 when something is broken."""
    if assignments and measure is None:
        raise ConfigError("--set changes what --measure PRESET measures; give both.")
    with Session.loading():
        from freeflow_core import api

    manager = Session.of(context).manager
    checks = api.diagnose(manager)
    if measure is not None:
        config = api.resolve_config("distill", preset=measure, settings=assignments or (), manager=manager)
        checks = [*checks, *api.check_derivatives(config, manager)]
    if as_json:
        print_json(checks)
    else:
        print_checks(checks)
    _fail_on_errors(checks)


_SHOWN = 3


def check(
    context: typer.Context,
    teacher: options.TeacherName = None,
    config: Annotated[Path | None, options.value("FILE", "File with a section teacher, such as a run's.")] = None,
    assignments: Annotated[list[str] | None, options.settings("teacher.X= or codec.X=value.")] = None,
    num: Annotated[int | None, typer.Option("--num", "-n", min=2, help="Default: 16, more of small states.")] = None,
    steps: Annotated[int, typer.Option(min=4, help="Midpoint steps, two passes each.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    output: Annotated[Path, options.folder("Folder for a picture of the samples.")] = Path("teacher-check"),
    precision: options.Precision = "float32",
    device: options.Device = "auto",
    as_json: options.AsJSON = False,
) -> None:
    """Integrate a teacher and measure whether time, sign and scale are right; propose what is. Exit code 1 if not."""
    if teacher is None and config is None:
        raise ConfigError("Nothing to check. Give --teacher NAME, or --config FILE with a section teacher.")
    session = Session.of(context)
    session.registry(teacher=teacher)
    with Session.loading():
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
        found = {"teacher": result.teacher, "right": result.is_right, "checks": result.checks}
        print_json({**found, "proposals": result.proposals, "file": result.file})
    else:
        print_checks(result.checks)
        if result.proposals:
            several = len(result.proposals) > 1
            print_line(f"Read in {'one of these ways' if several else 'this way'} it would be right:")
        for proposal in result.proposals[:_SHOWN]:
            settings = " ".join(f"--set teacher.{name}={_written(value)}" for name, value in proposal.settings.items())
            print_line(f"  {settings}   (misses {number(proposal.miscalibration)})")
        print_files({"samples": result.file} if result.file else {})
    _fail_on_errors(result.checks)


def _fail_on_errors(checks: Sequence[Check]) -> None:
    if any(check.status == "error" for check in checks):
        raise typer.Exit(1)


def _written(value: object) -> str:
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)
