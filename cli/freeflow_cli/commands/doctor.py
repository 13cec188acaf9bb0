"""``freeflow doctor``: is everything in place?"""

from __future__ import annotations

import typer
from rich.table import Table
from rich.text import Text

from freeflow_cli.console import output
from freeflow_cli.session import Session

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def doctor(context: typer.Context) -> None:
    """Check the installation, the device and the plugins. Exit code 1 when something is broken."""
    from freeflow_core import api

    checks = api.diagnose(Session.of(context).manager)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(Text(check.status, style=STYLES[check.status]), Text(check.name), Text(check.detail))
    output().print(table)
    if any(check.status == "error" for check in checks):
        raise typer.Exit(1)
