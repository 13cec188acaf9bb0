"""Components, presets and published weights by kind and name, and who keeps a name that several plugins offer."""

import importlib.resources
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from freeflow_core.errors import PluginError, UnknownComponent
from freeflow_core.plugin.component import KINDS, PRESET_COMMANDS, Component, Preset, WeightFile
from freeflow_core.plugin.manager import DISABLED_VARIABLE, OWN_DISTRIBUTION, LoadedPlugin, Manager

Item = TypeVar("Item", Component, Preset, WeightFile)


class Offers(Generic[Item]):
    """What is offered under one kind. What is no ``expected`` is left out, and nobody wins a disputed name silently.

    A built-in plugin keeps its names. Between two others neither has the name: which of them was meant is not ours to
    guess.

    Args:
        kind: of what is offered, in words.
        found: pairs of plugin and what its hook returned, in order of the plugins' names.

    Attributes:
        warnings: one line for everything that was left out.
    """

    def __init__(self, kind: str, found: Iterable[tuple[LoadedPlugin, Any]], expected: type[Item]) -> None:
        self._kind = kind
        self._taken: dict[str, tuple[LoadedPlugin, Item]] = {}
        self._disputed: dict[str, str] = {}  # what to say when such a name is asked for
        self.warnings: list[str] = []
        by_name: dict[str, list[tuple[LoadedPlugin, Item]]] = {}
        for plugin, item in found:
            if isinstance(item, expected):
                by_name.setdefault(item.name, []).append((plugin, item))
                continue
            shown = repr(item) if len(repr(item)) < 80 else f"a {type(item).__name__}"
            self.warnings.append(
                f"plugin {plugin} returned {shown} among its {kind}s; expected a {expected.__name__}. It is left out."
            )
        for name, claims in by_name.items():
            first = next((claim for claim in claims if claim[0].distribution == OWN_DISTRIBUTION), claims[0])
            others = [claim[0] for claim in claims if claim is not first]
            if first[0].distribution == OWN_DISTRIBUTION or all(plugin == first[0] for plugin in others):
                self._taken[name] = first
                for plugin in others:
                    why = "it offers two" if plugin == first[0] else f"plugin {first[0]} has it; built-in names stay"
                    self.warnings.append(f"plugin {plugin}: its {kind} {name!r} is left out: {why}. Rename it.")
                continue
            names = dict.fromkeys(str(plugin) for plugin, _ in claims)
            self._disputed[name] = (
                f"The {kind} {name!r} is offered by the plugins {' and '.join(names)}, so neither is used. Uninstall "
                f"one, or disable it, e.g. {DISABLED_VARIABLE}={claims[-1][0].name}."
            )
            self.warnings.append(self._disputed[name])

    @property
    def items(self) -> Mapping[str, Item]:
        return MappingProxyType({name: item for name, (_, item) in sorted(self._taken.items())})

    def find(self, name: str, listed_by: str = "freeflow plugins list") -> tuple[LoadedPlugin, Item]:
        """An item and its plugin.

        Raises ``UnknownComponent`` where nobody offers it, with a suggestion (``listed_by`` is the command that shows
        all), ``PluginError`` where several do, so that nobody has it.
        """
        if name in self._disputed:
            raise PluginError(self._disputed[name])
        if name not in self._taken:
            raise UnknownComponent(self._kind, name, self._taken, listed_by)
        return self._taken[name]


class Registry:
    """A read-only view of what the loaded plugins offer. Nothing that one does wrong stops it: see ``warnings``."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self._components = {kind: Offers(kind, manager.collect(f"freeflow_{kind}s"), Component) for kind in KINDS}
        presets: dict[str, list[tuple[LoadedPlugin, Any]]] = {command: [] for command in (*PRESET_COMMANDS, "")}
        for plugin, preset in manager.collect("freeflow_presets"):
            presets[preset.command if isinstance(preset, Preset) else ""].append((plugin, preset))
        self._presets = {command: Offers(f"{command} preset".strip(), presets[command], Preset) for command in presets}
        self._weights = Offers("weight file", manager.collect("freeflow_weights"), WeightFile)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for all that is offered and nobody gets: names that two plugins claim, objects of a wrong class."""
        every: list[Offers[Any]] = [*self._components.values(), *self._presets.values(), self._weights]
        return tuple(line for offers in every for line in offers.warnings)

    def components(self, kind: str) -> Mapping[str, Component]:
        return self._components[kind].items

    def component(self, kind: str, name: str) -> Component:
        """One component. Raises as :meth:`Offers.find`."""
        return self._components[kind].find(name)[1]

    def origin(self, kind: str, name: str) -> LoadedPlugin:
        """The plugin that registered a component. Raises as :meth:`component`."""
        return self._components[kind].find(name)[0]

    def presets(self, command: str) -> Mapping[str, Preset]:
        return self._presets[command].items

    def preset(self, command: str, name: str) -> Preset:
        """One preset. Raises as :meth:`component`."""
        return self._presets[command].find(name)[1]

    def preset_origin(self, command: str, name: str) -> LoadedPlugin:
        """The plugin that ships a preset. Raises as :meth:`component`."""
        return self._presets[command].find(name)[0]

    def weights(self) -> Mapping[str, WeightFile]:
        return self._weights.items

    def weight(self, name: str) -> WeightFile:
        """Published weights by name. Raises as :meth:`component`."""
        return self._weights.find(name, "freeflow fetch --list")[1]

    def preset_for(self, command: str, teacher: str | None) -> str | None:
        """Name of the preset that ``--teacher`` alone runs; None where no preset, or more than one, claims it."""
        names = [name for name, preset in self.presets(command).items() if preset.teacher and preset.teacher == teacher]
        return names[0] if len(names) == 1 else None

    def preset_text(self, preset: Preset) -> str:
        package, _, path = preset.resource.partition(":")
        try:
            return importlib.resources.files(package).joinpath(path).read_text("utf-8")
        except (ModuleNotFoundError, FileNotFoundError) as error:
            raise PluginError(f"Preset {preset.name!r} points to {preset.resource!r}, which is missing.") from error
