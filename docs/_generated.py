"""Reference pages made from the program itself: its command tree, its configuration models, its registry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main
from freeflow_cli.catalogue import ModelOption, entries, model_options
from freeflow_cli.main import build_app

from freeflow_core.config import RunConfig
from freeflow_core.config.compare import ComparisonConfig
from freeflow_core.plugin import Component, Manager, Registry

OWN = "freeflow-distill"


def commands() -> str:
    """Every command with its arguments and options, in the words of ``--help``."""
    manager = Manager.load()
    parts = []
    for path, command in _leaves(typer.main.get_command(build_app(manager)), ("freeflow",)):
        rows = []
        for parameter in command.params:
            is_argument = parameter.param_type_name == "argument"
            names = (parameter.metavar or parameter.name.upper()) if is_argument else ", ".join(parameter.opts)
            text = getattr(parameter, "help", None) or ""
            default = parameter.default
            shown = "" if default in (None, False, ()) or callable(default) else f"`{_plain(default)}`"
            rows.append((f"`{names}`", shown, text))
        help_text = " ".join((command.help or "").split())
        parts.append(f"## {' '.join(path)}\n\n{_cell(help_text)}\n\n" + _table(("option", "default", "meaning"), rows))
    return "\n\n".join(parts)


def configuration() -> str:
    """Every setting of a run, by section, as ``--set`` takes it."""
    sections: dict[str, list[ModelOption]] = {}
    for option in model_options(RunConfig):
        section = option.name.split(".")[0] if "." in option.name else ""
        sections.setdefault("" if section in ("teacher", "student", "objective") else section, []).append(option)
    parts = [f"### {name or 'The run'}\n\n{_options(options)}" for name, options in sections.items()]
    return "\n\n".join([*parts, f"### compare\n\n{_options(model_options(ComparisonConfig))}"])


def components(kind: str) -> str:
    """Every component of a kind that ships with freeflow, with its options."""
    registry = Registry(Manager.load())
    origin = {(entry.kind, entry.name): entry.distribution for entry in entries(registry)}
    found = sorted(registry.components(kind).items())
    return "\n\n".join(_component(name, component) for name, component in found if origin[kind, name] == OWN)


def _component(name: str, component: Component) -> str:
    options = model_options(component.load_config_class())
    summary, source = component.about()
    head = f"### {name}\n\n{_cell(summary.rstrip('.'))}.{f' Source: {_cell(source)}.' if source else ''}"
    return f"{head}\n\n{_options(options)}" if options else f"{head} No options."


def _leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", {})
    if not children or len(path) == 1:
        yield path, command
    for name, child in children.items():
        yield from _leaves(child, (*path, name))


def _options(options: list[ModelOption]) -> str:
    chosen = {o.name.removesuffix(".options") for o in options if o.name.endswith(".options")}
    options = [
        ModelOption(o.name.removesuffix(".name"), "component", "", "", "Name and options of a component.")
        if o.name.removesuffix(".name") in chosen
        else o
        for o in options
        if o.name.removesuffix(".options") not in chosen
    ]
    rows = [
        (
            f"`{o.name}`",
            f"`{o.default}`" if o.default else "",
            ", ".join(filter(None, (o.type, o.range))),
            o.description,
        )
        for o in options
    ]
    return _table(("setting", "default", "type and range", "meaning"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if "`" in text else text.replace("<", "&lt;").replace("[", "\\[")  # [x][y] would be a link


def _plain(default: Any) -> str:
    return str(getattr(default, "value", default))
