"""Entry point of the ``freeflow`` command: options, errors as paragraphs, the log. No torch."""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, final

import typer
from typer.core import TyperGroup

from freeflow_cli.commands import register_commands
from freeflow_cli.console import ERROR_STYLE, is_main_process, say, warn
from freeflow_cli.session import Session
from freeflow_core import __version__
from freeflow_core.errors import ConfigError, FreeflowError, Interrupted, PluginError, is_out_of_memory
from freeflow_core.plugin import Manager
from freeflow_core.plugin.culprit import described

DEBUG = "--debug"
DEBUG_VARIABLE = "FREEFLOW_DEBUG"
PLUGIN = "--plugin"
TRUST = "--trust"


def wants_debug(arguments: Sequence[str]) -> bool:
    """True when ``--debug`` stands before any ``--``, or ``FREEFLOW_DEBUG`` is set to something that means yes."""
    ours, _ = _split(arguments)
    return DEBUG in ours or os.environ.get(DEBUG_VARIABLE, "").lower() not in ("", "0", "false", "no", "off")


def hoist_flags(arguments: Sequence[str]) -> list[str]:
    """``--debug`` and ``--trust`` moved in front of the sub-command, where the parser knows them."""
    ours, rest = _split(arguments)
    flags = [flag for flag in (DEBUG, TRUST) if flag in ours]
    return [*flags, *(argument for argument in ours if argument not in flags), *rest]


def take_plugin_files(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The line without its ``--plugin FILE`` (or ``--plugin=FILE``) options, and the files.

    Raises:
        ConfigError: ``--plugin`` at the end of the line, without a file.
    """
    ours, rest = _split(arguments)
    kept: list[str] = []
    files: list[Path] = []
    remaining = iter(ours)
    for argument in remaining:
        option, _, file = argument.partition("=")
        if option != PLUGIN:
            kept.append(argument)
        elif file := file or next(remaining, ""):
            files.append(Path(file))
        else:
            raise ConfigError("--plugin needs a file, e.g. freeflow --plugin my_plugin.py plugins list.")
    return kept + rest, files


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:end]), list(arguments[end:])


@contextmanager
def reported_errors(debug: bool, manager: Manager | None = None) -> Iterator[None]:
    """Print what goes wrong inside as one paragraph on stderr, after the traceback when ``debug``.

    With a ``manager`` what fails in somebody's plugin is told as that.

    Raises:
        SystemExit: 2 for a usage error, 1 for every other failure.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, (Interrupted, KeyboardInterrupt)):
            again = "Give the same command again; a training run that saved a checkpoint goes on with --resume."
            say(_written(error) or again, title="Interrupted", style="yellow")
        elif isinstance(error, FreeflowError):
            say(_with_culprit(error, manager), title="Error", style=ERROR_STYLE)
        elif (told := _environment_failure(error)) is not None:
            say(told, title="Error", style=ERROR_STYLE)
        elif manager is not None and (told := manager.blame(error)):
            hint = "" if debug else " Run again with --debug for the way there."
            say(f"{told.rstrip('. ')}.{hint}", title="Error", style=ERROR_STYLE)
        else:
            hint = "" if debug else " Run again with --debug to see where; that output belongs in a bug report."
            say(f"{described(error).rstrip('.: ')}.{hint}", title="Unexpected error", style=ERROR_STYLE)
        raise SystemExit(error.exit_code if isinstance(error, FreeflowError) else 1) from None


def _with_culprit(error: FreeflowError, manager: Manager | None) -> str:
    """What it says; before it, whose code failed where, when a check that met the failure could not know."""
    cause, text = error.__cause__, _written(error)
    if manager is None or not isinstance(error, PluginError) or cause is None or isinstance(cause, FreeflowError):
        return text
    told = manager.blame(cause)
    return text if told is None or ", line " in text else f"{told.rstrip('. ')}. {text}"


def _written(error: BaseException) -> str:
    """The message with options named as here, though it may come from a function that has told it for Python."""
    return (error.on_command_line if isinstance(error, FreeflowError) else None) or str(error)


def _environment_failure(error: BaseException) -> str | None:
    """What the machine refused, in words; None for everything else."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return (
            f"There is not enough memory{f' ({text[:160]})' if text else ''}. Lower the batch, raise "
            "training.accumulation, or choose smaller networks; `--dry-run` tells what a run would need."
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror}. Check the path, its permissions and the free space."
    return None


LOGGER = "freeflow"


@final
class MessageHandler(logging.Handler):
    """Information as it is, warnings and errors as warning lines; the main process alone speaks."""

    def emit(self, record: logging.LogRecord) -> None:
        if not is_main_process():
            return
        tell = warn if record.levelno >= logging.WARNING else say
        tell(" ".join(record.getMessage().split()))


def show_log() -> None:
    """Attach the handler once; for the process's entry point only.

    Warnings meant for users become lines too. Those meant for developers (deprecations in libraries) stay silent
    unless Python is asked for them with ``-W`` or ``PYTHONWARNINGS``.
    """
    warnings.showwarning = _show_warning
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(handler, MessageHandler) for handler in logger.handlers):
        logger.addHandler(MessageHandler())
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    if issubclass(category, UserWarning) and is_main_process():
        warn(" ".join(str(message).split()))


@final
class FreeflowGroup(TyperGroup):
    """Typer's group with one error handler around it. Usage errors stay Typer's own, with exit code 2."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        words = hoist_flags(sys.argv[1:] if args is None else args)
        manager = self.context_settings["obj"].manager
        with reported_errors(wants_debug(words), manager) if options.get("standalone_mode", True) else nullcontext():
            return super().main(words, *more, **options)

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
