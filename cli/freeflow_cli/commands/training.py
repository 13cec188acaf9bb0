"""What `distill` and `pretrain` have in common: resolve, plan or run, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from freeflow_cli.commands.resolution import Request
from freeflow_cli.console import is_main_process, output, warn
from freeflow_cli.plan_table import facts, memory_table, network_table
from freeflow_cli.results import print_line, print_result
from freeflow_cli.session import Session

if TYPE_CHECKING:
    from freeflow_core.config import RunConfig


def train(session: Session, request: Request, *, folder: Path | None, resume: bool, dry_run: bool) -> None:
    """Carry out a training command. The configuration is checked before torch is imported."""
    config = request.load(session)
    if dry_run:
        print_plan(session, config)
        return
    from freeflow_core import api

    command = api.pretrain if request.command == "pretrain" else api.distill
    with session.progress():
        result = command(config, output=folder, resume=resume, manager=session.manager)
    print_result(result, request.command, config)


def print_plan(session: Session, config: RunConfig) -> None:
    """What a run would do and need."""
    from freeflow_core import api

    plan = api.plan(config, manager=session.manager)
    if not is_main_process():
        return
    console = output()
    console.print(network_table(plan))
    console.print(memory_table(plan))
    lines = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    lines.add_column(style="bold", no_wrap=True)
    lines.add_column(overflow="fold")
    for name, value in facts(plan):
        lines.add_row(Text(name), Text(value))
    console.print(lines)
    print_line(console, "Dry run: nothing was trained or written.")
    for warning in plan.warnings:
        warn(warning)
