"""Imports a plugin's module, and says in one line why it cannot be."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from freeflow_core.errors import PluginError
from freeflow_core.plugin.version import needed_in_source, refusal


def import_entry_point(point: importlib.metadata.EntryPoint) -> Any:
    """What an entry point names.

    Raises:
        PluginError: it needs another version of the plugin API, which may be why it cannot be imported.
        Exception: whatever else importing it raises.
    """
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        if reason := refusal(needed_in_source(_source(point.module))):
            raise PluginError(f"{reason} ({one_line(error)})") from error
        if isinstance(error, SystemExit):
            raise PluginError(f"importing it ends the program ({one_line(error)})") from error
        raise


def import_file(path: Path, name: str) -> ModuleType:
    """Run the file as the module ``name``, which its components may be found under.

    Raises:
        PluginError: there is no such file, or it fails.
    """
    if not path.is_file():
        raise PluginError(f"The plugin file {path} does not exist.")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"The plugin file {path} is not a Python module; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        reason = refusal(needed_in_source(path.read_text("utf-8", errors="replace")))
        text = f"{reason} ({one_line(error)})" if reason else one_line(error)
        raise PluginError(f"The plugin file {path} failed to load: {text}") from error
    return module


def one_line(error: BaseException) -> str:
    """An exception as one line; its kind is left out where the message is made for users."""
    text = " ".join(str(error).split())
    if isinstance(error, PluginError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _source(module: str) -> str:
    try:
        spec = importlib.util.find_spec(module)
        return Path(spec.origin).read_text("utf-8", errors="replace") if spec and spec.origin else ""
    except (Exception, SystemExit):
        return ""
