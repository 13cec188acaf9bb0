"""What the loaded plugins offer, and the options of their components, as rows to print or to write as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from freeflow_core.errors import ConfigError, suggest
from freeflow_core.plugin import KINDS, Component, Manager, Preset, Registry
from freeflow_core.plugin.component import PRESET_COMMANDS
from freeflow_core.plugin.manager import LoadedPlugin
from freeflow_core.plugin.spec import SPECIFICATIONS

if TYPE_CHECKING:
    from pydantic import BaseModel


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


_NUMERIC = {"minimum": ">= {}", "exclusiveMinimum": "> {}", "maximum": "<= {}", "exclusiveMaximum": "< {}"}
_LENGTHS = {
    "minLength": "length >= {}",
    "maxLength": "length <= {}",
    "minItems": "items >= {}",
    "maxItems": "items <= {}",
    "pattern": "matches {}",
    "multipleOf": "multiple of {}",
}
_TYPES = {"integer": "int", "number": "float", "string": "text", "boolean": "true | false", "object": "mapping"}


@dataclass(frozen=True)
class ModelOption:
    """One setting. ``default`` is written as in a configuration file; ``required`` has none."""

    name: str
    type: str
    default: str
    range: str
    description: str

    def as_dict(self) -> dict[str, str]:
        """For JSON output."""
        return asdict(self)


def model_options(model: type[BaseModel]) -> list[ModelOption]:
    """All options of ``model``; those of nested models by dotted name, as ``--set`` takes them."""
    schema = model.model_json_schema()
    return _options(schema, schema.get("$defs", {}), "")


def _options(schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> list[ModelOption]:
    found: list[ModelOption] = []
    for name, written in schema.get("properties", {}).items():
        field = _follow(written, definitions)
        if "properties" in field:
            found.extend(_options(field, definitions, f"{prefix}{name}."))
            continue
        required = name in schema.get("required", ())
        found.append(
            ModelOption(
                name=f"{prefix}{name}",
                type=_type(field, definitions),
                default="required" if required else _default(field),
                range=_range(field, definitions),
                description=field.get("description", ""),
            )
        )
    return found


def _follow(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = field.get("$ref")
    return {**definitions[reference.rsplit("/", 1)[-1]], **field} if reference else field


def _default(field: Mapping[str, Any]) -> str:
    # A default that is made by a factory is not part of the schema.
    return json.dumps(field["default"], ensure_ascii=False) if "default" in field else ""


def _type(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    field = _follow(field, definitions)
    if "anyOf" in field:
        return " | ".join(dict.fromkeys(_type(part, definitions) for part in field["anyOf"]))
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    kind = field.get("type", "any")
    if kind == "array":
        inner = field.get("items") or (field.get("prefixItems") or [{}])[0]
        return f"list of {_type(inner, definitions)}"
    if field.get("format") in ("path", "file-path", "directory-path"):
        return "path"
    return _TYPES.get(kind, str(kind))


def _range(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    parts = [text.format(field[key]) for key, text in (_NUMERIC | _LENGTHS).items() if key in field]
    inner = [*field.get("anyOf", ()), *([field["items"]] if isinstance(field.get("items"), dict) else ())]
    parts += [text for part in inner if (text := _range(_follow(part, definitions), definitions))]
    return ", ".join(dict.fromkeys(parts))
