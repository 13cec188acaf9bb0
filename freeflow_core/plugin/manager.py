"""Loads plugins one by one, so that a broken one, or one for another API, costs a warning line and never the tool."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from freeflow_core.errors import PluginError, suggest
from freeflow_core.plugin.component import Component
from freeflow_core.plugin.spec import PROJECT, SPECIFICATIONS

API_VERSION: tuple[int, int] = (1, 0)
"""(major, minor) of the hooks, interfaces, types and rules that plugins are written against.

A new minor version only adds; a new major version may break a plugin that works today.
"""

ATTRIBUTE = "freeflow_api"
"""What a plugin's module says it needs: ``freeflow_api = "1"``, or ``"1.2"`` for what came with version 1.2."""

UNDECLARED = "1"
"""A plugin that says nothing, such as a one-file experiment, counts as written for the first version."""

_FORM = re.compile(r"(\d+)(?:\.(\d+))?")
_DECLARATION = re.compile(rf"""^{ATTRIBUTE}(?:\s*:[^=\n]*)?\s*=\s*["']([^"'\n]*)["']""", re.MULTILINE)


def api_version() -> str:
    """This core's version, e.g. ``"1.0"``."""
    return ".".join(map(str, API_VERSION))


def needed_version(plugin: Any) -> str:
    """What a plugin (a module or object) declares to need, or :data:`UNDECLARED`; may be nonsense."""
    return str(getattr(plugin, ATTRIBUTE, UNDECLARED))


def needed_in_source(source: str) -> str:
    """The same from a module's text, for one that cannot be imported: perhaps for want of the version it needs."""
    found = _DECLARATION.search(source)
    return found[1] if found else UNDECLARED


def refusal(needed: str) -> str | None:
    """Why a plugin that needs this version cannot be used here, naming both versions; None when it can."""
    found = _FORM.fullmatch(needed)
    if found is None:
        return f'{ATTRIBUTE} = {needed!r} is not a version of the plugin API; expected e.g. "{API_VERSION[0]}"'
    major, minor = int(found[1]), int(found[2] or 0)
    if major == API_VERSION[0] and minor <= API_VERSION[1]:
        return None
    remedy = "update freeflow-distill" if (major, minor) > API_VERSION else "update the plugin"
    return f"it needs version {needed} of the plugin API, and this freeflow has version {api_version()}; {remedy}"


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


DISABLED_VARIABLE = "FREEFLOW_DISABLED_PLUGINS"
OWN_DISTRIBUTION = "freeflow-distill"
"""Its plugins, the built-in ones, keep their names when another distribution's plugin claims one."""


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
    """

    def __init__(self) -> None:
        self.trusted = False
        self._pluggy = pluggy.PluginManager(PROJECT)
        for specification in SPECIFICATIONS:
            self._pluggy.add_hookspecs(specification)
        self._registered: dict[str, LoadedPlugin] = {}
        self._left_out: list[LoadedPlugin] = []
        self._failed_hooks: set[tuple[str, str]] = set()
        self._warnings: list[str] = []

    @classmethod
    def load(cls, files: Iterable[Path] = (), *, trust: bool = False) -> Manager:
        """Every installed plugin (entry points of group ``freeflow``), then one-file plugins asked for by path.

        ``FREEFLOW_DISABLED_PLUGINS`` (comma separated names of entry points or distributions) keeps plugins out.
        ``trust`` lets components run code that a configuration names, see :attr:`trusted`.

        Raises:
            PluginError: one of ``files`` cannot be used. An installed plugin that cannot is a problem, not an error.
        """
        manager = cls()
        manager.trusted = trust
        disabled = {part.strip() for part in os.environ.get(DISABLED_VARIABLE, "").split(",") if part.strip()}
        found = [(point, _found(point)) for point in importlib.metadata.entry_points(group=PROJECT)]
        found.sort(key=lambda pair: (pair[1].name, pair[1].distribution != OWN_DISTRIBUTION, pair[1].distribution))
        manager._check_disabled(disabled, [plugin for _, plugin in found])
        enabled = [plugin for _, plugin in found if not disabled & {plugin.name, plugin.distribution}]
        for point, plugin in found:
            if plugin not in enabled:
                manager._left_out.append(replace(plugin, problem=f"disabled by {DISABLED_VARIABLE}"))
            elif rivals := [other for other in enabled if other.name == plugin.name and other != plugin]:
                manager._load_rival(point, plugin, rivals)
            else:
                manager._load_entry_point(point, plugin)
        for path in files:
            manager.load_file(path)
        return manager

    def register(self, plugin: Any, name: str, distribution: str = "", version: str = "") -> None:
        """Register a module or object that implements hooks.

        Raises:
            PluginError: a name that is taken, a hook whose name or arguments no specification has, or another version
                of the plugin API.
        """
        if self._pluggy.has_plugin(name):
            raise PluginError(f"A plugin named {name!r} is registered already; two need different names.")
        needed = needed_version(plugin)
        if reason := refusal(needed):
            raise PluginError(f"Plugin {name!r} cannot be used: {reason}.")
        try:
            self._pluggy.register(plugin, name)
            self._pluggy.check_pending()
        except Exception as error:
            if self._pluggy.has_plugin(name):
                self._pluggy.unregister(name=name)
            raise PluginError(f"Plugin {name!r} cannot be registered: {one_line(error)}") from error
        self._registered[name] = LoadedPlugin(name, distribution or name, version, api=needed, loaded=True)

    def load_file(self, path: Path) -> None:
        """Load a one-file plugin. This runs the file: only ever called for a path the user named.

        Raises:
            PluginError: it does not exist, fails to load, needs another version, or one of its name is loaded already.
        """
        name = f"freeflow_file_{path.stem}"
        if self._pluggy.has_plugin(name):
            raise PluginError(
                f"The plugin file {path} cannot be loaded beside {self._registered[name].distribution}: both would be "
                f"the plugin {name!r}. Name each file once, or rename one."
            )
        self.register(import_file(path, name), name, str(path))

    @property
    def plugins(self) -> tuple[LoadedPlugin, ...]:
        """All plugins found, loaded or not."""
        return (*self._registered.values(), *self._left_out)

    @property
    def problems(self) -> tuple[LoadedPlugin, ...]:
        """Plugins that could not be loaded, or have a hook that failed (those disabled on purpose are no problem)."""
        return tuple(p for p in self.plugins if p.problem and not p.problem.startswith("disabled by"))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong besides single plugins: names in ``FREEFLOW_DISABLED_PLUGINS`` that are nobody's."""
        return tuple(self._warnings)

    @property
    def hook(self) -> Any:
        """pluggy's hook relay: ``manager.hook.freeflow_run_started(run=...)``."""
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
                self._add_problem(name, f"{hook_name}: {one_line(error)}")
                continue
            found.extend((self._registered[name], item) for item in items)
        return found

    def _load_entry_point(self, point: importlib.metadata.EntryPoint, plugin: LoadedPlugin) -> None:
        try:
            self.register(import_entry_point(point), plugin.name, plugin.distribution, plugin.version)
        except Exception as error:
            self._left_out.append(replace(plugin, problem=one_line(error)))

    def _load_rival(
        self, point: importlib.metadata.EntryPoint, plugin: LoadedPlugin, rivals: list[LoadedPlugin]
    ) -> None:
        """One of several plugins of the same name: a built-in one is loaded, of others none."""
        if plugin.distribution == OWN_DISTRIBUTION:
            self._load_entry_point(point, plugin)
            return
        own = any(rival.distribution == OWN_DISTRIBUTION for rival in rivals)
        outcome = "the built-in one is used" if own else "none of them is used"
        others = " and ".join(rival.distribution for rival in rivals)
        self._left_out.append(
            replace(
                plugin,
                problem=f"{others} has a plugin of this name too; {outcome}. Uninstall one, or disable it by its "
                f"distribution, {DISABLED_VARIABLE}={plugin.distribution}",
            )
        )

    def _check_disabled(self, disabled: set[str], plugins: list[LoadedPlugin]) -> None:
        known = {name for plugin in plugins for name in (plugin.name, plugin.distribution)}
        if unknown := sorted(disabled - known):
            names = ", ".join(repr(name) for name in unknown)
            self._warnings.append(
                f"{DISABLED_VARIABLE} names {names}: no such plugin is installed."
                f"{suggest(unknown[0], known)} `freeflow plugins list` shows all of them."
            )

    def _add_problem(self, name: str, text: str) -> None:
        plugin = self._registered[name]
        self._registered[name] = replace(plugin, problem=f"{plugin.problem}; {text}" if plugin.problem else text)


def _found(point: importlib.metadata.EntryPoint) -> LoadedPlugin:
    if point.dist is None:
        return LoadedPlugin(point.name, "unknown", "")
    return LoadedPlugin(point.name, point.dist.name, point.dist.version)


def _items(returned: Any, plugin: Any) -> list[Any]:
    if isinstance(returned, (str, bytes)) or not isinstance(returned, Iterable):
        shown = repr(returned) if len(repr(returned)) < 80 else f"a {type(returned).__name__}"
        raise PluginError(f"it returned {shown}; expected a list")
    module = plugin if isinstance(plugin, ModuleType) else sys.modules[type(plugin).__module__]
    return [item.within(module) if isinstance(item, Component) else item for item in returned]
