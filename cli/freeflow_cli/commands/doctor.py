"""``freeflow doctor``: is everything in place?"""

from __future__ import annotations

import json

import typer

from freeflow_cli.checks import checks_as_json, failed, print_checks
from freeflow_cli.commands import options
from freeflow_cli.console import output
from freeflow_cli.session import Session


def doctor(context: typer.Context, as_json: options.AsJSON = False) -> None:
    """Check the installation, the device, the launch and the plugins. Exit code 1 when something is broken."""
    from freeflow_core import api

    checks = api.diagnose(Session.of(context).manager)
    if as_json:
        typer.echo(json.dumps(checks_as_json(checks), indent=1))
    else:
        print_checks(output(), checks)
    if failed(checks):
        raise typer.Exit(1)
