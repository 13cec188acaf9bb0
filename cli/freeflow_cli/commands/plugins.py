"""``freeflow plugins``: what is installed, and what can be set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column
from rich.text import Text

from freeflow_cli.catalogue import Entry, PluginEntry, check_kind, entries, find, model_options, plugin_entries
from freeflow_cli.commands import options
from freeflow_cli.console import stdout
from freeflow_cli.results import make_table, print_json, print_line
from freeflow_cli.session import Session
from freeflow_core.plugin import Component, Registry
from freeflow_core.plugin.manager import api_version

Kind = Annotated[str | None, typer.Option("--kind", metavar="KIND", help="teacher, student, ..., or preset.")]


def list_plugins(context: typer.Context, kind: Kind = None, as_json: options.AsJSON = False) -> None:
    """List components and presets by kind, then the plugins they come from."""
    check_kind(kind)
    session = Session.of(context)
    found = [entry for entry in entries(session.registry()) if kind in (None, entry.kind)]
    plugins = plugin_entries(session.manager)
    if as_json:
        listed = {"components": [e.as_dict() for e in found], "plugins": [p._asdict() for p in plugins]}
        print_json({"api_version": api_version(), **listed})
        return
    console = stdout()
    _print_components(console, found)
    if kind is None:
        _print_plugins(console, plugins)
        print_line(console, f"This freeflow has version {api_version()} of the plugin API.")


def show_plugin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A component, preset or plugin.")],
    kind: Kind = None,
    as_json: options.AsJSON = False,
) -> None:
    """Show a component's options, a preset's settings, or a plugin's hooks."""
    check_kind(kind)
    session = Session.of(context)
    registry = session.registry()
    everything, plugins = entries(registry), plugin_entries(session.manager)
    found = find(name, kind, everything, plugins)
    named = [plugin for plugin in plugins if plugin.name == name and kind is None]
    if as_json:
        details = [_details(registry, entry) for entry in found]
        print_json({"components": details, "plugins": [plugin._asdict() for plugin in named]})
        return
    console = stdout()
    for entry in found:
        _print_entry(console, registry, entry)
    for plugin in named:
        print_line(console, f"plugin {plugin.name}, {_origin(plugin)}")
        print_line(console, f"Hooks: {', '.join(plugin.hooks) or 'none'}")
        if plugin.api:
            print_line(console, f"Needs version {plugin.api} of the plugin API; this freeflow has {api_version()}.")
        if plugin.problem:
            print_line(console, f"{'Works in part only' if plugin.api else 'Not available'}: {plugin.problem}")
        _print_components(console, [entry for entry in everything if entry.plugin == plugin.name])


def _print_entry(console: Console, registry: Registry, entry: Entry) -> None:
    print_line(console, f"{entry.kind} {entry.name}: {entry.summary}")
    print_line(console, f"From plugin {entry.plugin}, {_origin(entry)}")
    item = entry.item
    if not isinstance(item, Component):
        if item.scores:
            print_line(console, f"Scores: {item.scores}")
        print_line(console, f"\n{registry.preset_text(item).rstrip()}\n")
        return
    if source := item.about()[1]:
        print_line(console, f"Source: {source}")
    settings = model_options(item.load_config_class())
    if not settings:
        print_line(console, "It has no options.\n")
        return
    columns = (
        Column("option", style="cyan", overflow="fold"),
        Column("type", overflow="fold"),
        Column("default", overflow="fold"),
        "range",
        Column("description", ratio=1),
    )
    console.print(make_table(columns, settings))


def _print_components(console: Console, found: Iterable[Entry]) -> None:
    name = Column("name", style="cyan", overflow="fold")
    table = make_table([name, Column("summary", ratio=1), Column("plugin", overflow="fold"), "version"])
    kind = ""
    for entry in found:
        if entry.kind != kind:
            kind = entry.kind
            table.add_row(Text(kind, style="bold default"))
        table.add_row(Text(f"  {entry.name}"), *map(Text, (entry.summary, entry.plugin, entry.version)))
    if table.row_count:
        console.print(table)
    else:
        print_line(console, "None.")


def _print_plugins(console: Console, plugins: Iterable[PluginEntry]) -> None:
    name, distribution = Column("plugin", style="bold", overflow="fold"), Column("distribution", overflow="fold")
    table = make_table([name, distribution, "version", "API", Column("hooks", ratio=1)])
    for plugin in plugins:
        hooks = ", ".join(hook.removeprefix("freeflow_") for hook in plugin.hooks) or "none"
        last = Text(plugin.problem, style="yellow") if plugin.problem else Text(hooks)
        table.add_row(*map(Text, (plugin.name, plugin.distribution, plugin.version, plugin.api)), last)
    console.print(table)


def _details(registry: Registry, entry: Entry) -> dict[str, Any]:
    details: dict[str, Any] = entry.as_dict()
    if isinstance(entry.item, Component):
        settings = model_options(entry.item.load_config_class())
        return details | {"source": entry.item.about()[1], "options": [setting._asdict() for setting in settings]}
    text = registry.preset_text(entry.item)
    return details | {"command": entry.item.command, "scores": entry.item.scores, "yaml": text}


def _origin(item: Entry | PluginEntry) -> str:
    return f"distribution {item.distribution} {item.version}".rstrip()
