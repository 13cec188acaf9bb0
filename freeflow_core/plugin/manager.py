"""Loads plugins one by one, so that a broken one costs a warning line and never the tool."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pluggy

from freeflow_core.errors import PluginError
from freeflow_core.plugin.spec import PROJECT, SPECIFICATIONS

DISABLED_VARIABLE = "FREEFLOW_DISABLED_PLUGINS"


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin as found: its name, distribution, version, and why it was not loaded (or ``None``)."""

    name: str
    distribution: str
    version: str
    problem: str | None = None


class Manager:
    """A pluggy manager over the ``freeflow`` entry-point group. There is no module-global instance."""

    def __init__(self) -> None:
        self._pluggy = pluggy.PluginManager(PROJECT)
        for specification in SPECIFICATIONS:
            self._pluggy.add_hookspecs(specification)
        self._loaded: list[LoadedPlugin] = []

    @classmethod
    def load(cls, files: Iterable[Path] = ()) -> Manager:
        """Every installed plugin (entry points of group ``freeflow``), then one-file plugins asked for by path.

        ``FREEFLOW_DISABLED_PLUGINS`` (comma separated entry-point names) keeps plugins out.
        """
        manager = cls()
        disabled = {part.strip() for part in os.environ.get(DISABLED_VARIABLE, "").split(",") if part.strip()}
        entry_points = sorted(importlib.metadata.entry_points(group=PROJECT), key=lambda point: point.name)
        for point in entry_points:
            distribution = point.dist.name if point.dist else "unknown"
            version = point.dist.version if point.dist else ""
            if point.name in disabled:
                manager._loaded.append(
                    LoadedPlugin(point.name, distribution, version, f"disabled by {DISABLED_VARIABLE}")
                )
                continue
            try:
                manager.register(point.load(), point.name, distribution, version)
            except Exception as error:
                manager._loaded.append(LoadedPlugin(point.name, distribution, version, _one_line(error)))
        for path in files:
            manager.load_file(path)
        return manager

    def register(self, plugin: Any, name: str, distribution: str = "", version: str = "") -> None:
        """Register a module or object that implements hooks.

        Raises:
            PluginError: a hook whose name or arguments no specification has.
        """
        if self._pluggy.has_plugin(name):
            raise PluginError(f"A plugin named {name!r} is registered already; two need different names.")
        try:
            self._pluggy.register(plugin, name)
            self._pluggy.check_pending()
        except Exception as error:
            if self._pluggy.has_plugin(name):
                self._pluggy.unregister(name=name)
            raise PluginError(f"Plugin {name!r} cannot be registered: {_one_line(error)}") from error
        self._loaded.append(LoadedPlugin(name, distribution or name, version))

    def unregister(self, name: str) -> None:
        """Take a plugin out again. Raises :class:`PluginError` when there is none of that name."""
        if not self._pluggy.has_plugin(name):
            raise PluginError(f"There is no plugin named {name!r} to unregister.")
        self._pluggy.unregister(name=name)
        self._loaded = [p for p in self._loaded if p.name != name]

    def load_file(self, path: Path) -> None:
        """Load a one-file plugin. This runs the file: only ever called for a path the user named."""
        if not path.is_file():
            raise PluginError(f"The plugin file {path} does not exist.")
        name = f"freeflow_file_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise PluginError(f"The plugin file {path} is not a Python module.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # its components name it as "freeflow_file_<stem>:Class"
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise PluginError(f"The plugin file {path} failed to load: {_one_line(error)}") from error
        self.register(module, name, str(path))

    @property
    def plugins(self) -> tuple[LoadedPlugin, ...]:
        """All plugins found, loaded or not."""
        return tuple(self._loaded)

    @property
    def problems(self) -> tuple[LoadedPlugin, ...]:
        """Plugins that could not be loaded (those disabled on purpose are not problems)."""
        return tuple(p for p in self._loaded if p.problem and not p.problem.startswith("disabled by"))

    @property
    def hook(self) -> Any:
        """pluggy's hook relay: ``manager.hook.freeflow_run_started(run=...)``."""
        return self._pluggy.hook

    def collect(self, hook_name: str) -> list[tuple[LoadedPlugin, Any]]:
        """Call a discovery hook plugin by plugin, in order of name; pairs of plugin and item."""
        found: list[tuple[LoadedPlugin, Any]] = []
        by_name = {p.name: p for p in self._loaded}
        hook = getattr(self._pluggy.hook, hook_name)
        for implementation in sorted(hook.get_hookimpls(), key=lambda i: i.plugin_name):
            plugin = by_name[implementation.plugin_name]
            if plugin.problem is not None:
                continue
            try:
                items = list(implementation.function())
            except Exception as error:
                self._loaded[self._loaded.index(plugin)] = LoadedPlugin(
                    plugin.name, plugin.distribution, plugin.version, f"{hook_name}: {_one_line(error)}"
                )
                continue
            found.extend((plugin, item) for item in items)
        return found


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
