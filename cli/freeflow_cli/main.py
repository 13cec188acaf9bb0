"""Entry point of the ``freeflow`` command. Nothing here imports torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from freeflow_cli.arguments import DEBUG, DEBUG_VARIABLE, PLUGIN, TRUST, take_plugin_files, wants_debug
from freeflow_cli.commands import register_commands
from freeflow_cli.errors import reported_errors
from freeflow_cli.group import FreeflowGroup
from freeflow_cli.log import show_log
from freeflow_cli.session import Session
from freeflow_core import __version__
from freeflow_core.plugin import Manager


def build_app(manager: Manager) -> typer.Typer:
    """The command line over the plugins of ``manager``, with the commands that they add."""
    session = Session(manager)
    app = typer.Typer(
        name="freeflow",
        cls=FreeflowGroup,
        help="Distil flow and diffusion teachers into one-step students.",
        context_settings={"obj": session, "help_option_names": ["-h", "--help"]},
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    register_commands(app)
    session.add_commands(app)
    return app


def main() -> None:
    """Load the plugins, build the application, run it."""
    show_log()
    arguments = sys.argv[1:]
    with reported_errors(wants_debug(arguments)):
        arguments, files = take_plugin_files(arguments)
        app = build_app(Manager.load(files))
    app(arguments)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"freeflow {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(PLUGIN, metavar="FILE", help="Load a one-file plugin; this runs the file. Repeatable, anywhere."),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option(TRUST, help="Let components run code that a setting names, e.g. the teacher callable. Anywhere."),
    ] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG, envvar=DEBUG_VARIABLE, help="Show the traceback of an error. Anywhere on the line.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    session = Session.of(context)
    session.manager.trusted = session.manager.trusted or trust
    # main() has already taken --plugin off the line; an application that is called directly still gets it here.
    for path in plugin or ():
        session.manager.load_file(path)
