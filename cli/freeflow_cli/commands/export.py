"""``freeflow export``: a trained student in its field's published format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freeflow_cli.commands import options
from freeflow_cli.console import output as output_console
from freeflow_cli.results import print_line
from freeflow_cli.session import Session
from freeflow_core.errors import ConfigError


def export(
    context: typer.Context,
    student: options.TrainedStudent = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="File to write: .pt or .safetensors.")
    ] = Path("student.pt"),
) -> None:
    """Write a trained student as the published FreeFlow students are written, for other people's code."""
    if student is None:
        raise ConfigError("Nothing to export. Give --run PATH: the folder of a run, or a student file.")
    if output.exists():
        raise ConfigError(f"{output} exists already and is left as it is. Choose another --output.")
    session = Session.of(context)
    from freeflow_core import api

    print_line(output_console(), api.export(student, output, manager=session.manager))
