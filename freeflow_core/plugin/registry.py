"""Components, presets and published weights by kind and name."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from typing import Any

from freeflow_core.errors import PluginError
from freeflow_core.plugin.component import KINDS, PRESET_COMMANDS, Component, Preset, WeightFile
from freeflow_core.plugin.manager import LoadedPlugin, Manager
from freeflow_core.plugin.offers import Offers, settle


class Registry:
    """A read-only view of what the loaded plugins offer. Nothing that one does wrong stops it: see ``warnings``."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self._components: dict[str, Offers[Component]] = {
            kind: settle(kind, manager.collect(f"freeflow_{kind}s"), Component) for kind in KINDS
        }
        presets = manager.collect("freeflow_presets")
        wrong = [pair for pair in presets if not isinstance(pair[1], Preset)]
        self._presets: dict[str, Offers[Preset]] = {
            command: settle(
                f"{command} preset", [p for p in presets if p not in wrong and p[1].command == command], Preset
            )
            for command in PRESET_COMMANDS
        }
        self._wrong_presets: Offers[Preset] = settle("preset", wrong, Preset)
        self._weights: Offers[WeightFile] = settle("weight file", manager.collect("freeflow_weights"), WeightFile)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for all that is offered and nobody gets: names that two plugins claim, objects of a wrong class."""
        every: tuple[Offers[Any], ...] = (
            *self._components.values(),
            *self._presets.values(),
            self._wrong_presets,
            self._weights,
        )
        return tuple(line for offers in every for line in offers.warnings)

    def components(self, kind: str) -> Mapping[str, Component]:
        """All components of one kind, by name."""
        return self._components[kind].items

    def component(self, kind: str, name: str) -> Component:
        """One component.

        Raises:
            UnknownComponent: nobody offers it; with a suggestion.
            PluginError: several plugins do; the message names them.
        """
        return self._components[kind].find(name)[1]

    def origin(self, kind: str, name: str) -> LoadedPlugin:
        """The plugin that registered a component. Raises as :meth:`component`."""
        return self._components[kind].find(name)[0]

    def presets(self, command: str) -> Mapping[str, Preset]:
        """All presets for ``distill``, ``pretrain`` or ``compare``, by name."""
        return self._presets[command].items

    def preset(self, command: str, name: str) -> Preset:
        """One preset. Raises as :meth:`component`."""
        return self._presets[command].find(name)[1]

    def preset_origin(self, command: str, name: str) -> LoadedPlugin:
        """The plugin that ships a preset. Raises as :meth:`component`."""
        return self._presets[command].find(name)[0]

    def weights(self) -> Mapping[str, WeightFile]:
        """All published weights, by name."""
        return self._weights.items

    def weight(self, name: str) -> WeightFile:
        """Published weights by name. Raises as :meth:`component`."""
        return self._weights.find(name, "freeflow fetch --list")[1]

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
