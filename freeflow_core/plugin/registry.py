"""Components, presets and published weights by kind and name."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from freeflow_core.errors import PluginError, UnknownComponent
from freeflow_core.plugin.component import KINDS, Component, Preset, WeightFile
from freeflow_core.plugin.manager import LoadedPlugin, Manager

_T = TypeVar("_T", Component, Preset, WeightFile)


class Registry:
    """A read-only view of what the loaded plugins offer.

    Raises:
        PluginError: two plugins register the same kind and name; the message names both distributions.
    """

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self._components: dict[str, dict[str, tuple[LoadedPlugin, Component]]] = {}
        for kind in KINDS:
            table: dict[str, tuple[LoadedPlugin, Component]] = {}
            for plugin, item in manager.collect(f"freeflow_{kind}s"):
                _insert(table, kind, plugin, item, Component)
            self._components[kind] = table
        self._presets: dict[str, dict[str, tuple[LoadedPlugin, Preset]]] = {
            command: {} for command in ("distill", "pretrain", "compare")
        }
        for plugin, item in manager.collect("freeflow_presets"):
            if not isinstance(item, Preset) or item.command not in self._presets:
                raise PluginError(
                    f"Plugin {plugin.name!r} returned {item!r} as a preset; expected a Preset "
                    f"whose command is one of {', '.join(self._presets)}."
                )
            _insert(self._presets[item.command], f"{item.command} preset", plugin, item, Preset)
        self._weights: dict[str, tuple[LoadedPlugin, WeightFile]] = {}
        for plugin, item in manager.collect("freeflow_weights"):
            _insert(self._weights, "weight file", plugin, item, WeightFile)

    def components(self, kind: str) -> Mapping[str, Component]:
        """All components of one kind, by name."""
        return MappingProxyType({name: item for name, (_, item) in sorted(self._components[kind].items())})

    def component(self, kind: str, name: str) -> Component:
        """One component. Raises :class:`UnknownComponent` with a suggestion."""
        try:
            return self._components[kind][name][1]
        except KeyError:
            raise UnknownComponent(kind, name, self._components[kind]) from None

    def origin(self, kind: str, name: str) -> LoadedPlugin:
        """The plugin that registered a component."""
        self.component(kind, name)
        return self._components[kind][name][0]

    def presets(self, command: str) -> Mapping[str, Preset]:
        """All presets for ``distill``, ``pretrain`` or ``compare``, by name."""
        return MappingProxyType({name: item for name, (_, item) in sorted(self._presets[command].items())})

    def preset(self, command: str, name: str) -> Preset:
        """One preset. Raises :class:`UnknownComponent` with a suggestion."""
        try:
            return self._presets[command][name][1]
        except KeyError:
            raise UnknownComponent(f"{command} preset", name, self._presets[command]) from None

    def weights(self) -> Mapping[str, WeightFile]:
        """All published weights, by name."""
        return MappingProxyType({name: item for name, (_, item) in sorted(self._weights.items())})

    def weight(self, name: str) -> WeightFile:
        """Published weights by name. Raises :class:`UnknownComponent` with a suggestion."""
        try:
            return self._weights[name][1]
        except KeyError:
            raise UnknownComponent("weights", name, self._weights, "freeflow fetch --list") from None

    def preset_for(self, command: str, teacher: str | None) -> str | None:
        """Name of the preset that ``--teacher`` alone runs; None where no preset, or more than one, claims it."""
        names = [name for name, preset in self.presets(command).items() if preset.teacher and preset.teacher == teacher]
        return names[0] if len(names) == 1 else None

    def preset_text(self, preset: Preset) -> str:
        """The YAML text of a preset, read from the plugin's package."""
        package, _, path = preset.resource.partition(":")
        try:
            return importlib.resources.files(package).joinpath(path).read_text("utf-8")
        except (ModuleNotFoundError, FileNotFoundError) as error:
            raise PluginError(f"Preset {preset.name!r} points to {preset.resource!r}, which is missing.") from error


def _insert(
    table: dict[str, tuple[LoadedPlugin, _T]], kind: str, plugin: LoadedPlugin, item: object, expected: type[_T]
) -> None:
    if not isinstance(item, expected):
        raise PluginError(f"Plugin {plugin.name!r} returned {item!r} as a {kind}; expected a {expected.__name__}.")
    if item.name in table:
        other = table[item.name][0]
        raise PluginError(
            f"Two plugins register the {kind} {item.name!r}: {other.name!r} from {other.distribution} and "
            f"{plugin.name!r} from {plugin.distribution}. Uninstall one, or disable it with "
            "FREEFLOW_DISABLED_PLUGINS=<plugin name>."
        )
    table[item.name] = (plugin, item)
