"""What the loaded plugins offer, as rows to print or to write as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from freeflow_core.errors import ConfigError, suggest
from freeflow_core.plugin import KINDS, Component, Manager, Preset, Registry
from freeflow_core.plugin.component import PRESET_COMMANDS
from freeflow_core.plugin.manager import LoadedPlugin
from freeflow_core.plugin.spec import SPECIFICATIONS

PRESET = "preset"
ALL_KINDS: tuple[str, ...] = (*KINDS, PRESET)


@dataclass(frozen=True)
class Entry:
    """One component or preset, and where it comes from."""

    kind: str
    name: str
    summary: str
    plugin: str
    distribution: str
    version: str
    item: Component | Preset

    def as_dict(self) -> dict[str, str]:
        """For JSON output; without the component itself."""
        return {key: value for key, value in asdict(self).items() if key != "item"}


@dataclass(frozen=True)
class PluginEntry:
    """One plugin, the API it needs (empty: not loaded), its hooks, and why it or a hook is not there (or ``None``)."""

    name: str
    distribution: str
    version: str
    api: str
    hooks: tuple[str, ...]
    problem: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return asdict(self) | {"hooks": list(self.hooks)}


def entries(registry: Registry) -> list[Entry]:
    """Every component by kind and name, then the presets."""
    found = [
        _entry(kind, item.summary, registry.origin(kind, name), item)
        for kind in KINDS
        for name, item in registry.components(kind).items()
    ]
    found += [
        _entry(PRESET, f"[{command}] {item.summary}", registry.preset_origin(command, name), item)
        for command in sorted(PRESET_COMMANDS)
        for name, item in registry.presets(command).items()
    ]
    return found


def plugin_entries(manager: Manager) -> list[PluginEntry]:
    """Every plugin found, in order of name, whether it works or not."""
    hooks: dict[str, list[str]] = {}
    for specification in SPECIFICATIONS:
        for name in vars(specification):
            if name.startswith("freeflow_"):
                for implementation in getattr(manager.hook, name).get_hookimpls():
                    hooks.setdefault(implementation.plugin_name, []).append(name)
    return [
        PluginEntry(
            p.name, p.distribution, p.version, p.api, tuple(hooks.get(p.name, ())) if p.loaded else (), p.problem
        )
        for p in sorted(manager.plugins, key=lambda p: p.name)
    ]


def check_kind(kind: str | None) -> None:
    """Raise :class:`ConfigError` for a kind that does not exist."""
    if kind is not None and kind not in ALL_KINDS:
        raise ConfigError(f"Unknown kind {kind!r}.{suggest(kind, ALL_KINDS)} Known: {', '.join(ALL_KINDS)}.")


def find(name: str, kind: str | None, found: Iterable[Entry], plugins: Iterable[PluginEntry]) -> list[Entry]:
    """The entries called ``name``, of one kind or of all.

    Raises:
        ConfigError: there is none, and no plugin of this name either.
    """
    candidates = [entry for entry in found if kind in (None, entry.kind)]
    matching = [entry for entry in candidates if entry.name == name]
    known = {entry.name for entry in candidates} | ({plugin.name for plugin in plugins} if kind is None else set())
    if not matching and name not in known:
        raise ConfigError(
            f"No {kind or 'component, preset or plugin'} is named {name!r}.{suggest(name, known)} "
            "`freeflow plugins list` shows all of them."
        )
    return matching


def _entry(kind: str, summary: str, plugin: LoadedPlugin, item: Component | Preset) -> Entry:
    return Entry(kind, item.name, summary, plugin.name, plugin.distribution, plugin.version, item)
