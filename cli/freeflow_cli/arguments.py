"""The global options that are understood anywhere on the line, read before the application is built.

``--plugin`` has to come first because a plugin may add commands; ``--debug`` and ``--trust`` because they are what one
adds to the end of a line that has just failed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from freeflow_core.errors import ConfigError

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
        if argument == PLUGIN:
            file = next(remaining, None)
            if file is None:
                raise ConfigError("--plugin needs a file, e.g. freeflow --plugin my_plugin.py plugins list.")
            files.append(Path(file))
        elif argument.startswith(f"{PLUGIN}="):
            files.append(Path(argument.removeprefix(f"{PLUGIN}=")))
        else:
            kept.append(argument)
    return kept + rest, files


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:end]), list(arguments[end:])
