"""The root command: reports errors, accepts ``--debug`` and ``--trust`` anywhere, and names plugins that failed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, final

from typer.core import TyperGroup

from freeflow_cli.arguments import hoist_flags, wants_debug
from freeflow_cli.errors import reported_errors
from freeflow_core.errors import Interrupted


@final
class FreeflowGroup(TyperGroup):
    """Typer's group with one error handler around it. Usage errors stay Typer's own, with exit code 2."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return super().main(hoist_flags(arguments), prog_name, complete_var, False, windows_expand_args, **extra)
        with reported_errors(wants_debug(arguments)):
            return super().main(hoist_flags(arguments), prog_name, complete_var, True, windows_expand_args, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Here rather than in the callback, so that --help names a broken plugin too; shell completion stays silent.
        if not ctx.resilient_parsing:
            ctx.obj.warn_about_plugins()
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error  # Typer would make a silent exit of it
