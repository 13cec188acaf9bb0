"""What the loaded plugins offer, and the options of their components, as rows to print or to write as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from freeflow_core.errors import ConfigError, suggest
from freeflow_core.plugin import KINDS, Component, Manager, Preset, Registry
from freeflow_core.plugin.component import PRESET_COMMANDS
from freeflow_core.plugin.manager import LoadedPlugin
from freeflow_core.plugin.spec import SPECIFICATIONS

if TYPE_CHECKING:
    from pydantic import BaseModel


PRESET = "preset"
ALL_KINDS: tuple[str, ...] = (*KINDS, PRESET)


class Entry(NamedTuple):
    """One component or preset, and where it comes from."""

    kind: str
    name: str
    summary: str
    plugin: str
    distribution: str
    version: str
    item: Component | Preset

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in self._asdict().items() if key != "item"}


class PluginEntry(NamedTuple):
    """One plugin, the API it needs (empty: not loaded), its hooks, and why it or a hook is not there (or ``None``)."""

    name: str
    distribution: str
    version: str
    api: str
    hooks: tuple[str, ...]
    problem: str | None


def entries(registry: Registry) -> list[Entry]:
    """Every component by kind and name, then the presets."""

    found: list[tuple[str, str, LoadedPlugin, Component | Preset]] = [
        (kind, item.about()[0], registry.origin(kind, name), item)
        for kind in KINDS
        for name, item in registry.components(kind).items()
    ]
    found += [
        (PRESET, f"[{command}] {item.summary}", registry.preset_origin(command, name), item)
        for command in sorted(PRESET_COMMANDS)
        for name, item in registry.presets(command).items()
    ]
    return [
        Entry(kind, item.name, summary, plugin.name, plugin.distribution, plugin.version, item)
        for kind, summary, plugin, item in found
    ]


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


_LIMITS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "minLength": "length >= {}",
    "maxLength": "length <= {}",
    "minItems": "items >= {}",
    "maxItems": "items <= {}",
    "pattern": "matches {}",
    "multipleOf": "multiple of {}",
}
_TYPES = {"integer": "int", "number": "float", "string": "text", "boolean": "true | false", "object": "mapping"}


class ModelOption(NamedTuple):
    """One setting. ``default`` is written as in a configuration file; ``required`` has none."""

    name: str
    type: str
    default: str
    range: str
    description: str


def model_options(model: type[BaseModel]) -> list[ModelOption]:
    """All options of ``model``; those of nested models by dotted name, as ``--set`` takes them."""
    schema = model.model_json_schema()
    return list(_options(schema, schema.get("$defs", {}), ""))


def _options(schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> Iterator[ModelOption]:
    for name, written in schema.get("properties", {}).items():
        field = _follow(written, definitions)
        if "properties" in field:
            yield from _options(field, definitions, f"{prefix}{name}.")
            continue
        # A default that is made by a factory is not part of the schema.
        default = json.dumps(field["default"], ensure_ascii=False) if "default" in field else ""
        yield ModelOption(
            f"{prefix}{name}",
            _type(field, definitions),
            "required" if name in schema.get("required", ()) else default,
            ", ".join(dict.fromkeys(_limits(field, definitions))),
            " ".join(field.get("description", "").split()),
        )


def _follow(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = field.get("$ref")
    return {**definitions[reference.rsplit("/", 1)[-1]], **field} if reference else field


def _type(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    field = _follow(field, definitions)
    if "anyOf" in field:
        return " | ".join(dict.fromkeys(_type(part, definitions) for part in field["anyOf"]))
    if "enum" in field or "const" in field:
        return " | ".join(map(str, field.get("enum", [field.get("const")])))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items') or (field.get('prefixItems') or [{}])[0], definitions)}"
    if field.get("format") in ("path", "file-path", "directory-path"):
        return "path"
    kind = field.get("type", "any")
    return _TYPES.get(kind, str(kind))


def _limits(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    yield from (text.format(field[key]) for key, text in _LIMITS.items() if key in field)
    for part in (*field.get("anyOf", ()), *([field["items"]] if isinstance(field.get("items"), dict) else ())):
        yield from _limits(_follow(part, definitions), definitions)
