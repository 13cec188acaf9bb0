"""Preset, then file, then ``--set a.b=c``; then each component's options against its own model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import yaml
from pydantic import BaseModel, ValidationError

from freeflow_core.config.component import ComponentChoice, ComponentConfig, Section
from freeflow_core.config.run import RunConfig
from freeflow_core.errors import ConfigError, suggest

if TYPE_CHECKING:
    from freeflow_core.plugin import Preset, Registry

_KIND_OF_PATH = {name: name for name in ("teacher", "student", "objective", "source", "codec")}
_KIND_OF_PATH |= {"reference": "source", "trackers": "tracker"}
_KIND_OF_PATH |= {"evaluation.evaluators": "evaluator", "evaluation.reference_sampler": "sampler"}


DEFAULT_PRESETS = {"distill": "mnist", "pretrain": "digits", "compare": "digits"}
"""What commands do without options."""


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
        command: ``"distill"`` or ``"pretrain"``; which presets are looked up.
        preset: start from this preset. A file may name one itself under the key ``preset``.
        file: YAML or JSON file laid over the preset.
        overrides: nested mapping laid over both (what ``--teacher`` and ``--seed`` set).
        assignments: ``"a.b=c"`` strings, last; ``c`` is read as YAML.

    Raises ``ConfigError`` for unknown keys or names (with a suggestion), wrong types or values, an unreadable file.
    """
    written = read_config_file(file) if file else {}
    named_in_file = written.pop("preset", None)
    base: dict[str, Any] = {}
    if preset := preset or named_in_file:
        base = read_preset(registry, registry.preset(command, preset))
    values = lay_settings(merge(merge(base, written), overrides or {}), assignments)
    if "objective" in values:
        values["objective"] = with_guidance(registry, base, values["objective"])
    return resolve(registry, values).from_preset(preset)


ANY_TEACHER = "any-teacher"
"""What ``distill`` does for a teacher without a preset of its own."""


def choose_preset(registry: Registry, command: str, *, teacher: str | None = None, source: str | None = None) -> str:
    """The preset of a run that names none: made for the teacher asked for, or named after the source."""
    if preset := registry.preset_for(command, teacher):
        return preset
    if source is not None and source in registry.presets(command):
        return source
    return ANY_TEACHER if teacher is not None and command == "distill" else DEFAULT_PRESETS[command]


SHARED_OPTIONS = "guidance"
"""Options of a preset's objective that begin so belong to the task, not to the method: other objectives keep them."""


def with_guidance(registry: Registry, preset: Mapping[str, Any], objective: Any) -> Any:
    """``objective``'s options, over the guidance of the preset's where that is another one and this one knows it."""
    own = {"name": objective} if isinstance(objective, str) else objective
    base = preset.get("objective")
    if not isinstance(base, Mapping) or not isinstance(own, Mapping) or own.get("name") in (None, base.get("name")):
        return objective
    known = registry.component("objective", str(own["name"])).load_config_class().model_fields
    shared = {key: value for key, value in base.items() if key.startswith(SHARED_OPTIONS) and key in known}
    return {**shared, **own}


def resolve(registry: Registry, values: Mapping[str, Any]) -> RunConfig:
    """Validate nested ``values`` and every component's options. Raises :class:`ConfigError`."""
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, RunConfig, "")) from None

    def resolved(value: Any, path: str) -> Any:
        if isinstance(value, ComponentChoice):
            return resolve_choice(registry, _KIND_OF_PATH[path], value, path)
        if isinstance(value, tuple) and path in _KIND_OF_PATH:
            return tuple(resolved(item, path) for item in value)
        if isinstance(value, Section):
            return value.model_copy(update={name: resolved(part, f"{path}.{name}".lstrip(".")) for name, part in value})
        return value

    found: RunConfig = resolved(config, "")
    return found


def resolve_choice(registry: Registry, kind: str, choice: ComponentChoice, path: str) -> ComponentChoice:
    """Replace a choice's options by an instance of the component's own model."""
    model = registry.component(kind, choice.name).load_config_class()
    if isinstance(choice.options, model):
        return choice
    options = choice.options.model_dump() if isinstance(choice.options, ComponentConfig) else choice.options
    try:
        return ComponentChoice.model_construct(name=choice.name, options=model.model_validate(options))
    except ValidationError as error:
        raise ConfigError(explain(error, model, f"{path}.", f" of the {kind} {choice.name!r}")) from None


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
        elif isinstance(value, Mapping) and isinstance(old, (list, tuple)):
            result[key] = _lay_items(key, old, value)
        else:
            result[key] = value
    return result


def _lay_items(name: str, items: Sequence[Any], layer: Mapping[str, Any]) -> list[Any]:
    """Lay settings over single items of a list, which are numbered from 0: ``trackers.0.uri=...``."""
    result = [{"name": item} if isinstance(item, str) else item for item in items]
    for number, value in layer.items():
        if not (str(number).isdecimal() and int(number) < len(result)):
            raise ConfigError(
                f"There is no {name}.{number}: {name} has {len(result)} entries, numbered from 0. Set the whole list, "
                f"e.g. --set '{name}=[{{name: NAME}}]'."
            )
        result[int(number)] = merge({"": result[int(number)]}, {"": value})[""]
    return result


def lay_settings(values: Mapping[str, Any], settings: Iterable[str], *, closed: bool = False) -> dict[str, Any]:
    """Lay ``a.b=c`` strings over nested values, one after the other; ``closed``: only where ``a`` is there already.

    Raises ``ConfigError`` for a string of another form, or one refused.
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
    with contextlib.suppress(yaml.YAMLError):
        value = load_yaml(value)
    return nest(keys, value)


def nest(keys: Sequence[str], value: Any) -> dict[str, Any]:
    """``{"a": {"b": value}}`` for the keys a and b."""
    for key in reversed(keys):
        value = {key: value}
    return dict(value)


CONFIG_NAME = "config.yaml"
"""The configuration in a run's folder."""


def saved_config(student: Path) -> Path:
    """The configuration in a run folder, or beside the student file that lies in one.

    Raises ``ConfigError``: there is no such path, or nothing there that says what to measure.
    """
    if not student.exists():
        raise ConfigError(
            f"There is no {student}; expected the folder of a run, or a student file. For a published student say what "
            "to measure, with --preset NAME or --config FILE."
        )
    file = (student if student.is_dir() else student.parent) / CONFIG_NAME
    if not file.is_file():
        raise ConfigError(f"There is no {file}, so what to measure is unknown. Give --preset NAME or --config FILE.")
    return file


def read_preset(registry: Registry, preset: Preset) -> dict[str, Any]:
    """A preset's settings. Raises ``PluginError`` where its file is missing."""
    return parse_yaml(registry.preset_text(preset), f"preset {preset.name!r}")


def read_config_file(path: Path) -> dict[str, Any]:
    """A YAML or JSON mapping. Raises :class:`ConfigError` with the line of a syntax error."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error}.") from None
    return parse_yaml(text, str(path))


@final
class _Loader(yaml.SafeLoader):
    """The safe loader, which executes nothing; it refuses a key that is there twice, of which one would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag != "tag:yaml.org,2002:merge" and isinstance(key_node, yaml.ScalarNode):
                if key_node.value in keys:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value!r} is there twice", key_node.start_mark
                    )
                keys.add(key_node.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def load_yaml(text: str) -> Any:
    """The value of a YAML text, by the safe loader. Raises ``yaml.YAMLError``, also for keys that are there twice."""
    try:
        return yaml.load(text, _Loader)  # a safe loader
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """Parse a mapping with the safe loader; nothing in it is executed."""
    try:
        values = load_yaml(text)
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


def explain(error: ValidationError, model: type[BaseModel], prefix: str, owner: str = "") -> str:
    """What is wrong with which setting, one sentence each; ``prefix`` stands before the names of ``owner``'s."""
    lines = []
    for item in error.errors():
        location = [part for part in item["loc"] if isinstance(part, (str, int))]
        path = prefix + ".".join(map(str, location))
        if item["type"] == "extra_forbidden":
            known = _fields_at(model, location[:-1])
            hint = suggest(str(location[-1]), known)
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
        current = field.annotation if field is not None else None
    return sorted(getattr(current, "model_fields", {}))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], free: tuple[str, ...] = ()) -> list[str]:
    """``a.b: old -> new`` for each setting of two nested mappings of JSON values that differs, sorted.

    Settings whose dotted name begins with one of ``free`` may differ.
    """

    def shown(value: Any) -> str:
        return "none" if value is None else json.dumps(value, ensure_ascii=False)

    before, after = _flat(old), _flat(json.loads(json.dumps(new)))
    return [
        f"{key}: {shown(before.get(key))} -> {shown(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(free)
    ]


def changed_settings(old: Mapping[str, Any], now: BaseModel, free: tuple[str, ...] = ()) -> list[str]:
    """:func:`differences` of ``now`` to the JSON values ``old`` of its model, perhaps of an earlier version."""
    return differences(_with_new_settings(old, now), now.model_dump(mode="json"), free)


def _with_new_settings(old: Mapping[str, Any], now: BaseModel) -> dict[str, Any]:
    """``old`` with the settings that have come since it was written.

    A setting that ``old`` lacks is added where ``now`` has it at its default: it is no change that it was not written.
    """
    if isinstance(now, ComponentChoice):
        if isinstance(now.options, ComponentConfig) and old.get("name") == now.name:
            return _with_new_settings(old, now.options)
        return dict(old)
    filled, written = dict(old), now.model_dump(mode="json")
    for name, field in type(now).model_fields.items():
        value = getattr(now, name)
        if name not in filled:
            if not field.is_required() and value == field.get_default(call_default_factory=True):
                filled[name] = written[name]
        elif isinstance(value, BaseModel) and isinstance(filled[name], Mapping):
            filled[name] = _with_new_settings(filled[name], value)
    return filled


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
