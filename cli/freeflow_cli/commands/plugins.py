"""``freeflow plugins``: what is installed, and what can be set."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from freeflow_cli.catalogue import (
    Entry,
    ModelOption,
    PluginEntry,
    check_kind,
    entries,
    find,
    model_options,
    plugin_entries,
)
from freeflow_cli.commands import options
from freeflow_cli.commands.plugins_check import check_plugin
from freeflow_cli.commands.plugins_new import new_plugin
from freeflow_cli.console import output
from freeflow_cli.results import print_line
from freeflow_cli.session import Session
from freeflow_core.plugin import Component, Registry
from freeflow_core.plugin.manager import api_version

Kind = Annotated[str | None, typer.Option("--kind", metavar="KIND", help="teacher, student, ..., or preset.")]


def application() -> typer.Typer:
    """The ``plugins`` group."""
    app = typer.Typer(help="Look at plugins, components and presets.", no_args_is_help=True)
    app.command("list")(list_plugins)
    app.command("show")(show_plugin)
    app.command("new")(new_plugin)
    app.command("check")(check_plugin)
    return app


def list_plugins(context: typer.Context, kind: Kind = None, as_json: options.AsJSON = False) -> None:
    """List components and presets by kind, then the plugins they come from."""
    check_kind(kind)
    session = Session.of(context)
    found = [entry for entry in entries(session.registry()) if kind in (None, entry.kind)]
    plugins = plugin_entries(session.manager)
    if as_json:
        _print_json(
            {
                "api_version": api_version(),
                "components": [e.as_dict() for e in found],
                "plugins": [p.as_dict() for p in plugins],
            }
        )
        return
    console = output()
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
        _print_json(
            {
                "components": [_details(registry, entry) for entry in found],
                "plugins": [plugin.as_dict() for plugin in named],
            }
        )
        return
    console = output()
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
    if item.source:
        print_line(console, f"Source: {item.source}")
    settings = model_options(item.load_config_class())
    if settings:
        console.print(_options_table(settings))
    else:
        print_line(console, "It has no options.\n")


def _print_components(console: Console, found: Iterable[Entry]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", style="cyan", overflow="fold")
    table.add_column("summary", ratio=1)
    table.add_column("plugin", overflow="fold")
    table.add_column("version")
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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("plugin", style="bold", overflow="fold")
    table.add_column("distribution", overflow="fold")
    table.add_column("version")
    table.add_column("API")
    table.add_column("hooks", ratio=1)
    for plugin in plugins:
        hooks = Text(plugin.problem, style="yellow") if plugin.problem else Text(_short(plugin.hooks))
        table.add_row(Text(plugin.name), Text(plugin.distribution), Text(plugin.version), Text(plugin.api), hooks)
    console.print(table)


def _options_table(settings: Iterable[ModelOption]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("option", style="cyan", overflow="fold")
    table.add_column("type", overflow="fold")
    table.add_column("default", overflow="fold")
    table.add_column("range")
    table.add_column("description", ratio=1)
    for setting in settings:
        values = (setting.name, setting.type, setting.default, setting.range, setting.description)
        table.add_row(*map(Text, values))
    return table


def _details(registry: Registry, entry: Entry) -> dict[str, Any]:
    details: dict[str, Any] = entry.as_dict()
    if isinstance(entry.item, Component):
        settings = model_options(entry.item.load_config_class())
        return details | {"source": entry.item.source, "options": [setting.as_dict() for setting in settings]}
    return details | {
        "command": entry.item.command,
        "scores": entry.item.scores,
        "yaml": registry.preset_text(entry.item),
    }


def _origin(item: Entry | PluginEntry) -> str:
    return f"distribution {item.distribution} {item.version}".rstrip()


def _short(hooks: Iterable[str]) -> str:
    return ", ".join(hook.removeprefix("freeflow_") for hook in hooks) or "none"


def _print_json(values: object) -> None:
    typer.echo(json.dumps(values, indent=2, ensure_ascii=False))
