"""Loads plugins one by one, so that a broken one, or one for another API, costs a warning line and never the tool."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from freeflow_core.errors import PluginError, suggest
from freeflow_core.plugin.component import KINDS, Component
from freeflow_core.plugin.culprit import blame, described, place
from freeflow_core.plugin.spec import PROJECT, SPECIFICATIONS

API_VERSION: tuple[int, int] = (1, 0)
"""(major, minor) of the hooks, interfaces, types and rules that plugins are written against.

A new minor version only adds; a new major version may break a plugin that works today.
"""

ATTRIBUTE = "freeflow_api"
"""What a plugin's module says it needs: ``freeflow_api = "1"``, or ``"1.2"`` for what came with version 1.2; "1" where
it says nothing, such as a one-file experiment."""

DISABLED_VARIABLE = "FREEFLOW_DISABLED_PLUGINS"
OWN_DISTRIBUTION = "freeflow-distill"
"""Its plugins, the built-in ones, keep their names when another distribution's plugin claims one."""
_OURS = ("freeflow_core", "freeflow_cli")


def api_version() -> str:
    """This core's version, e.g. ``"1.0"``."""
    return ".".join(map(str, API_VERSION))


def needed_in_source(source: str) -> str:
    """The version that a module's text declares to need: it may be why that cannot be imported."""
    found = re.search(rf"""^{ATTRIBUTE}(?:\s*:[^=\n]*)?\s*=\s*["']([^"'\n]*)["']""", source, re.MULTILINE)
    return found[1] if found else "1"


def refusal(needed: str) -> str | None:
    """Why a plugin that needs this version cannot be used here, naming both versions; None when it can."""
    found = re.fullmatch(r"(\d+)(?:\.(\d+))?", needed)
    if found is None:
        return f'{ATTRIBUTE} = {needed!r} is not a version of the plugin API; expected e.g. "{API_VERSION[0]}"'
    major, minor = int(found[1]), int(found[2] or 0)
    if major == API_VERSION[0] and minor <= API_VERSION[1]:
        return None
    remedy = "update freeflow-distill" if (major, minor) > API_VERSION else "update the plugin"
    return f"it needs version {needed} of the plugin API, and this freeflow has version {api_version()}; {remedy}"


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin as found.

    Args:
        name: of its entry point.
        distribution: what was installed, or the file of a one-file plugin.
        version: of the distribution.
        problem: why it, or one of its hooks, was left out; None: all is well.
        api: version of the plugin API that it declares to need; empty when it was not loaded.
        loaded: registered, and so asked for components; a ``problem`` is then one of its hooks.
    """

    name: str
    distribution: str
    version: str
    problem: str | None = None
    api: str = ""
    loaded: bool = False

    def __str__(self) -> str:
        return f"{self.name!r} ({f'{self.distribution} {self.version}'.strip()})"


class Manager:
    """A pluggy manager over the ``freeflow`` entry-point group. There is no module-global instance.

    Attributes:
        trusted: the user lets this session run code that a configuration names (an importable function, a file that
            holds a program). A permission of the session: no configuration can give it.
        warnings: what is wrong besides single plugins: names in ``FREEFLOW_DISABLED_PLUGINS`` that are nobody's.
    """

    def __init__(self) -> None:
        self.trusted = False
        self.warnings: tuple[str, ...] = ()
        self._pluggy = pluggy.PluginManager(PROJECT)
        for specification in SPECIFICATIONS:
            self._pluggy.add_hookspecs(specification)
        self._registered: dict[str, LoadedPlugin] = {}
        self._left_out: list[LoadedPlugin] = []
        self._failed_hooks: set[tuple[str, str]] = set()

    @classmethod
    def load(cls, files: Iterable[Path] = (), *, trust: bool = False) -> Manager:
        """Every installed plugin (entry points of group ``freeflow``), then one-file plugins asked for by path.

        ``FREEFLOW_DISABLED_PLUGINS`` (comma separated names of entry points or distributions) keeps plugins out.
        ``trust`` lets components run code that a configuration names, see :attr:`trusted`.

        Raises ``PluginError`` where one of ``files`` cannot be used. An installed plugin that cannot is a problem.
        """
        manager = cls()
        manager.trusted = trust
        disabled = {part.strip() for part in os.environ.get(DISABLED_VARIABLE, "").split(",") if part.strip()}
        found = [(point, _found(point)) for point in importlib.metadata.entry_points(group=PROJECT)]
        found.sort(key=lambda pair: (pair[1].name, pair[1].distribution != OWN_DISTRIBUTION, pair[1].distribution))
        known = {name for _, plugin in found for name in (plugin.name, plugin.distribution)}
        if unknown := sorted(disabled - known):
            manager.warnings = (
                f"{DISABLED_VARIABLE} names {', '.join(map(repr, unknown))}: no such plugin is installed."
                f"{suggest(unknown[0], known)} `freeflow plugins list` shows all of them.",
            )
        enabled = [plugin for _, plugin in found if not disabled & {plugin.name, plugin.distribution}]
        for point, plugin in found:
            rivals = [p.distribution for p in enabled if p.name == plugin.name and p != plugin]
            if plugin not in enabled:
                problem = f"disabled by {DISABLED_VARIABLE}"
            elif rivals and plugin.distribution != OWN_DISTRIBUTION:
                outcome = "the built-in one is used" if OWN_DISTRIBUTION in rivals else "none of them is used"
                problem = (
                    f"{' and '.join(rivals)} has a plugin of this name too; {outcome}. Uninstall one, or disable it by "
                    f"its distribution, {DISABLED_VARIABLE}={plugin.distribution}"
                )
            else:
                try:
                    module = _imported(point.load, functools.partial(_source, point.module), point.module)
                    manager.register(module, plugin.name, plugin.distribution, plugin.version)
                    continue
                except Exception as error:
                    problem = _one_line(error, point.module)
            manager._left_out.append(replace(plugin, problem=problem))
        for path in files:
            manager.load_file(path)
        return manager

    def register(self, plugin: Any, name: str, distribution: str = "", version: str = "") -> None:
        """Register a module or object that implements hooks.

        Raises ``PluginError`` for a name that is taken, a hook whose name or arguments no specification has, or another
        version of the plugin API.
        """
        if self._pluggy.has_plugin(name):
            raise PluginError(f"A plugin named {name!r} is registered already; two need different names.")
        needed = str(getattr(plugin, ATTRIBUTE, "1"))
        if reason := refusal(needed):
            raise PluginError(f"Plugin {name!r} cannot be used: {reason}.")
        try:
            self._pluggy.register(plugin, name)
            self._pluggy.check_pending()
        except Exception as error:
            if self._pluggy.has_plugin(name):
                self._pluggy.unregister(name=name)
            raise PluginError(f"Plugin {name!r} cannot be registered: {_one_line(error)}") from error
        self._registered[name] = LoadedPlugin(name, distribution or name, version, api=needed, loaded=True)

    @contextmanager
    def beside(self, plugin: Any, name: str) -> Iterator[None]:
        """Register ``plugin`` for what is done inside. Raises ``PluginError`` as :meth:`register` does."""
        self.register(plugin, name)
        try:
            yield
        finally:
            self._pluggy.unregister(name=name)
            del self._registered[name]

    def load_file(self, path: Path) -> None:
        """Load a one-file plugin. This runs the file: only ever called for a path the user named.

        Raises ``PluginError`` where it does not exist, fails to load, needs another version, or its name is taken.
        """
        name = f"freeflow_file_{path.stem}"
        if self._pluggy.has_plugin(name):
            raise PluginError(
                f"The plugin file {path} cannot be loaded beside {self._registered[name].distribution}: both would be "
                f"the plugin {name!r}. Name each file once, or rename one."
            )
        if not path.is_file():
            raise PluginError(f"The plugin file {path} does not exist.")
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or (loader := spec.loader) is None:
            raise PluginError(f"The plugin file {path} is not a Python module; its name must end in .py.")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            _imported(lambda: loader.exec_module(module), lambda: path.read_text("utf-8", errors="replace"), name)
        except PluginError as error:
            del sys.modules[name]
            raise PluginError(f"The plugin file {path} failed to load: {error}") from error
        self.register(module, name, str(path))

    @property
    def plugins(self) -> tuple[LoadedPlugin, ...]:
        return (*self._registered.values(), *self._left_out)

    @property
    def problems(self) -> tuple[LoadedPlugin, ...]:
        """Plugins that could not be loaded, or have a hook that failed (those disabled on purpose are no problem)."""
        return tuple(p for p in self.plugins if p.problem and not p.problem.startswith("disabled by"))

    def blame(self, error: BaseException) -> str | None:
        """What failed in somebody's code: plugin, distribution, method, file, line. None for our own, plugins included.

        Of all on the way the innermost counts.
        """
        owners: dict[str, LoadedPlugin] = {}
        for name, plugin in self._pluggy.list_name_plugin():
            owners[_package(_module_of(plugin))] = self._registered[name]
        for kind in KINDS:
            for owner, item in self.collect(f"freeflow_{kind}s"):
                if isinstance(item, Component):
                    owners.setdefault(_package(item.target), owner)
        others = {package: str(plugin) for package, plugin in owners.items() if plugin.distribution != OWN_DISTRIBUTION}
        return blame(error, {package: who for package, who in others.items() if package not in _OURS})

    @property
    def hook(self) -> Any:
        return self._pluggy.hook

    def collect(self, hook_name: str) -> list[tuple[LoadedPlugin, Any]]:
        """Call a discovery hook plugin by plugin, in order of name; pairs of plugin and item.

        A hook that raises, or returns no list, is not called again and becomes its plugin's ``problem``.
        """
        found: list[tuple[LoadedPlugin, Any]] = []
        hook = getattr(self._pluggy.hook, hook_name)
        for implementation in sorted(hook.get_hookimpls(), key=lambda i: i.plugin_name):
            name = implementation.plugin_name
            if (name, hook_name) in self._failed_hooks:
                continue
            try:
                items = _items(implementation.function(), implementation.plugin)
            except Exception as error:
                self._failed_hooks.add((name, hook_name))
                plugin, module = self._registered[name], _module_of(implementation.plugin)
                problem = f"{hook_name}: {_one_line(error, module)}"
                problem = f"{plugin.problem}; {problem}" if plugin.problem else problem
                self._registered[name] = replace(plugin, problem=problem)
                continue
            found.extend((self._registered[name], item) for item in items)
        return found


def _found(point: importlib.metadata.EntryPoint) -> LoadedPlugin:
    if point.dist is None:
        return LoadedPlugin(point.name, "unknown", "")
    return LoadedPlugin(point.name, point.dist.name, point.dist.version)


def _items(returned: Any, plugin: Any) -> list[Any]:
    if isinstance(returned, (str, bytes)) or not isinstance(returned, Iterable):
        shown = repr(returned) if len(repr(returned)) < 80 else f"a {type(returned).__name__}"
        raise PluginError(f"it returned {shown}; expected a list")
    module = sys.modules[_module_of(plugin)]
    return [item.within(module) if isinstance(item, Component) else item for item in returned]


def _imported(load: Callable[[], Any], source: Callable[[], str], name: str) -> Any:
    """What ``load`` imports as ``name``; ``source`` is its text. Raises :class:`PluginError` in one line."""
    try:
        return load()
    except (Exception, SystemExit) as error:
        reason = refusal(needed_in_source(source()))
        if reason is None and isinstance(error, SystemExit):
            reason = "importing it ends the program"
        told = _one_line(error, name)
        raise PluginError(f"{reason} ({told})" if reason else told) from error


def _source(module: str) -> str:
    try:
        spec = importlib.util.find_spec(module)
        return Path(spec.origin).read_text("utf-8", errors="replace") if spec and spec.origin else ""
    except (Exception, SystemExit):
        return ""


def _one_line(error: BaseException, module: str = "") -> str:
    """An exception as one line; its kind, and its place in ``module``'s package, where it is not made for users."""
    if isinstance(error, PluginError):
        return " ".join(str(error).split())
    where = place(error, {_package(module)})
    return f"{described(error)} ({where.removeprefix('in ')})" if where else described(error)


def _module_of(plugin: Any) -> str:
    return plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__


def _package(path: str) -> str:
    return path.partition(":")[0].partition(".")[0]
