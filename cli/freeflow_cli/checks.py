"""Findings as a table or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from freeflow_core.types import Check

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def print_checks(console: Console, checks: Sequence[Check]) -> None:
    """One line a finding: status, name, detail."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(Text(check.status, style=STYLES[check.status]), Text(check.name), Text(check.detail))
    console.print(table)


def checks_as_json(checks: Sequence[Check]) -> list[dict[str, str]]:
    """For ``--json``."""
    return [{"name": check.name, "status": check.status, "detail": check.detail} for check in checks]


def failed(checks: Sequence[Check]) -> bool:
    """Whether any is an error."""
    return any(check.status == "error" for check in checks)
