"""The one place where an exception becomes a paragraph and an exit code."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from freeflow_cli.console import say
from freeflow_core.errors import FreeflowError, Interrupted

ERROR_STYLE = "bold red"


@contextmanager
def reported_errors(debug: bool) -> Iterator[None]:
    """Print what goes wrong inside as one paragraph on stderr, after the traceback when ``debug``.

    Raises:
        SystemExit: 2 for a usage error, 1 for every other failure.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        _trace(debug)
        say(
            str(error) or "Give the same command again; a training run that saved a checkpoint goes on with --resume.",
            title="Interrupted",
            style="yellow",
        )
        raise SystemExit(1) from None
    except FreeflowError as error:
        _trace(debug)
        say(str(error), title="Error", style=ERROR_STYLE)
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        _trace(debug)
        text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")
        hint = "" if debug else " Run again with --debug to see where; that output belongs in a bug report."
        say(f"{text}.{hint}", title="Unexpected error", style=ERROR_STYLE)
        raise SystemExit(1) from None


def _trace(debug: bool) -> None:
    if debug:
        traceback.print_exc()
