"""Preset, then file, then ``--set a.b=c``; then each component's options against its own model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

from freeflow_core.config.component import ComponentChoice, ComponentConfig
from freeflow_core.config.run import RunConfig
from freeflow_core.errors import ConfigError

if TYPE_CHECKING:
    from freeflow_core.plugin.registry import Registry

_SINGLE = ("teacher", "student", "objective", "source", "codec")
_KIND_OF_PATH = {name: name for name in _SINGLE} | {
    "reference": "source",
    "trackers": "tracker",
    "evaluation.evaluators": "evaluator",
    "evaluation.reference_sampler": "sampler",
}


def load_run_config(
    registry: Registry,
    command: str,
    *,
    preset: str | None = None,
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
) -> RunConfig:
    """Merge and validate a run configuration.

    Args:
        registry: names and option models of the components.
        command: ``"distill"`` or ``"pretrain"``; which presets are looked up.
        preset: start from this preset. A file may name one itself under the key ``preset``.
        file: YAML or JSON file laid over the preset.
        overrides: nested mapping laid over both (what ``--teacher`` and ``--seed`` set).
        assignments: ``"a.b=c"`` strings, last; ``c`` is read as YAML.

    Raises:
        ConfigError: unknown keys or names (with a suggestion), wrong types or values, an unreadable file.
    """
    layers: list[Mapping[str, Any]] = []
    file_layer = read_config_file(file) if file else {}
    named_in_file = file_layer.pop("preset", None)
    preset = preset or named_in_file
    if preset:
        layers.append(parse_yaml(registry.preset_text(registry.preset(command, preset)), f"preset {preset!r}"))
    layers.append(file_layer)
    layers.append(overrides or {})
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, layer)
    return resolve(registry, lay_settings(merged, assignments))


def resolve(registry: Registry, values: Mapping[str, Any]) -> RunConfig:
    """Validate nested ``values`` and every component's options. Raises :class:`ConfigError`."""
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, RunConfig, "")) from None
    updates: dict[str, Any] = {
        name: resolve_choice(registry, _KIND_OF_PATH[name], choice, name)
        for name in (*_SINGLE, "reference")
        if (choice := getattr(config, name)) is not None
    }
    updates["trackers"] = tuple(resolve_choice(registry, "tracker", c, "trackers") for c in config.trackers)
    evaluation = config.evaluation
    updates["evaluation"] = evaluation.model_copy(
        update={
            "evaluators": tuple(
                resolve_choice(registry, "evaluator", c, "evaluation.evaluators") for c in evaluation.evaluators
            ),
            "reference_sampler": resolve_choice(
                registry, "sampler", evaluation.reference_sampler, "evaluation.reference_sampler"
            ),
        }
    )
    return config.model_copy(update=updates)


def resolve_choice(registry: Registry, kind: str, choice: ComponentChoice, path: str) -> ComponentChoice:
    """Replace a choice's options by an instance of the component's own model."""
    model = registry.component(kind, choice.name).load_config_class()
    if isinstance(choice.options, model):
        return choice
    options = choice.options.model_dump() if isinstance(choice.options, ComponentConfig) else choice.options
    try:
        return ComponentChoice.model_construct(name=choice.name, options=model.model_validate(options))
    except ValidationError as error:
        raise ConfigError(_explain(error, model, f"{path}.", f" of the {kind} {choice.name!r}")) from None


def merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested mapping over another. A component whose *name* changes drops the old one's options."""
    result = dict(base)
    for key, value in layer.items():
        old = result.get(key)
        if isinstance(value, str) and key in _KIND_OF_PATH:
            value = {"name": value}
        if isinstance(old, str) and key in _KIND_OF_PATH:
            old = {"name": old}
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            renamed = "name" in value and "name" in old and value["name"] != old["name"]
            result[key] = dict(value) if renamed else merge(old, value)
        else:
            result[key] = value
    return result


def lay_settings(values: Mapping[str, Any], settings: Iterable[str], *, closed: bool = False) -> dict[str, Any]:
    """Lay ``a.b=c`` strings over nested values, one after the other.

    Args:
        closed: refuse those whose ``a`` is not there already.

    Raises:
        ConfigError: a string of another form, or one refused.
    """
    laid = dict(values)
    for text in settings:
        layer = parse_assignment(text)
        if closed and (unknown := sorted(layer.keys() - laid.keys())):
            raise ConfigError(
                f"--set {text!r}: there is no {unknown[0]!r} here. Settings start with: {', '.join(laid)}."
            )
        laid = merge(laid, layer)
    return laid


def split_settings(
    settings: Iterable[str], parts: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """``parts`` with the ``part.option=value`` strings laid over them, and the other strings as they came."""
    texts = tuple(settings)
    ours = [text for text in texts if text.partition(".")[0] in parts]
    return lay_settings(parts, ours), tuple(text for text in texts if text not in ours)


def parse_assignment(text: str) -> dict[str, Any]:
    """``"a.b=c"`` to ``{"a": {"b": c}}``; ``c`` is YAML, so ``null``, ``[1, 2]`` and ``1e-4`` work."""
    path, separator, value = text.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"--set {text!r} is not of the form a.b=value, e.g. --set objective.weight_power=0.5.")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = value
    nested: Any = parsed
    for key in reversed(keys):
        nested = {key: nested}
    return dict(nested)


def read_config_file(path: Path) -> dict[str, Any]:
    """A YAML or JSON mapping. Raises :class:`ConfigError` with the line of a syntax error."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error}.") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """Parse a mapping with the safe loader; nothing in it is executed."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{origin} must hold a mapping of settings, not a {type(values).__name__}.")
    return values


def to_yaml(config: BaseModel) -> str:
    """The configuration as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _explain(error: ValidationError, model: type[BaseModel], prefix: str, owner: str = "") -> str:
    lines = []
    for item in error.errors():
        location = [part for part in item["loc"] if isinstance(part, (str, int))]
        path = prefix + ".".join(map(str, location))
        if item["type"] == "extra_forbidden":
            known = _fields_at(model, location[:-1])
            close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            lines.append(f"Unknown setting {path!r}{owner}.{hint} Known there: {', '.join(known) or 'none'}.")
        elif item["type"] == "missing":
            lines.append(f"Setting {path!r}{owner} is missing and has no default.")
        else:
            came = item.get("input")
            shown = f" (got {came!r})" if not isinstance(came, (dict, BaseModel)) else ""
            where = f"Setting {path!r}{owner}: " if path.rstrip(".") else ""
            lines.append(f"{where}{item['msg'].removeprefix('Value error, ')}{shown}.")
    return " ".join(lines)


def _fields_at(model: type[BaseModel], location: list[str | int]) -> list[str]:
    current: Any = model
    for part in location:
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return []
        current = field.annotation
    return sorted(getattr(current, "model_fields", {}))
