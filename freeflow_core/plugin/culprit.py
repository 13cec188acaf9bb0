"""Where somebody's code failed: in which plugin, method, file and line, in words."""

import os
import sysconfig
import traceback
from collections.abc import Collection, Mapping
from types import CodeType
from typing import NamedTuple

_OWN, _COMMAND_LINE = "freeflow_", "freeflow_cli"
_LOADED_FROM_FILES = ("freeflow_file_", "freeflow_network_")
"""Modules made of files that a user names: one-file plugins, and networks."""


class _Frame(NamedTuple):
    module: str
    code: CodeType
    line: int

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def described(error: BaseException) -> str:
    """An exception as one line: its kind and text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place(error: BaseException, packages: Collection[str] = ()) -> str:
    """``in Class.method(), file.py, line 12``: the innermost code of ``packages``, or of a file that nobody installed.

    Empty where there is none on the way.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"in {error.filename}, line {error.lineno}"
    found = _innermost(error, packages)
    if found is None:
        return ""
    name = found.code.co_qualname.replace("<locals>.", "")
    method = "" if name == "<module>" else f"{name}(), "
    return f"in {method}{found.code.co_filename}, line {found.line}"


def blame(error: BaseException, owners: Mapping[str, str]) -> str | None:
    """``The plugin 'my-flow' (my-flow 0.1.0) failed in ...: TypeError: ...``; None for what failed in our own code.

    ``owners``: plugins of other people, in words, by the package that their code lies in.
    """
    where = place(error, owners.keys())
    if not where:
        return None
    found = _innermost(error, owners.keys())
    owner = None if found is None else owners.get(found.package)
    return f"{f'The plugin {owner}' if owner else 'Code that is not of freeflow'} failed {where}: {described(error)}"


def _innermost(error: BaseException, packages: Collection[str]) -> _Frame | None:
    """Loose code counts from where our own below the command line called it."""
    last, called = None, False
    for frame, line in traceback.walk_tb(error.__traceback__):
        found = _Frame(frame.f_globals.get("__name__", ""), frame.f_code, line)
        if found.package in packages or (called and _is_loose(found)):
            last = found
        called = called or (found.package.startswith(_OWN) and found.package != _COMMAND_LINE)
    return last


def _is_loose(frame: _Frame) -> bool:
    """Whether code lies in a file that is neither ours, nor Python's, nor installed."""
    file = os.path.abspath(frame.code.co_filename)
    if frame.package.startswith(_OWN) and not frame.package.startswith(_LOADED_FROM_FILES):
        return False
    libraries = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    installed = "site-packages" in file or any(file.startswith(folder + os.sep) for folder in libraries)
    return os.path.isfile(file) and not installed
