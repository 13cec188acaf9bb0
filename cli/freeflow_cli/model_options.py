"""The options of a component, read from its configuration model's JSON schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

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
