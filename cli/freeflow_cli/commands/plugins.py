"""``freeflow plugins list``, ``show``, ``check``: what is installed, what can be set, and whether it works."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Column
from rich.text import Text

from freeflow_cli.catalogue import PRESET, Entry, PluginEntry, check_kind, entries, find, model_options, plugin_entries
from freeflow_cli.commands import options
from freeflow_cli.console import print_columns, print_json, print_line, stdout
from freeflow_cli.session import Session
from freeflow_cli.tables import make_table
from freeflow_core.config import ComponentChoice
from freeflow_core.config.load import lay_settings, resolve_choice
from freeflow_core.errors import ConfigError, UnknownComponent
from freeflow_core.plugin import Component, Registry
from freeflow_core.plugin.manager import api_version

if TYPE_CHECKING:
    from freeflow_core.testing import CheckResult

Kind = Annotated[str | None, typer.Option("--kind", metavar="KIND", help="teacher, student, ..., or preset.")]
_STYLES = {"ok": "green", "failed": "bold red", "skipped": "yellow"}
_WITH_TEACHER = ("student", "objective", "evaluator", "verifier")


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
    _print_components(found)
    if kind is None:
        _print_plugins(plugins)
        print_line(f"This freeflow has version {api_version()} of the plugin API.")


def show_plugin(
    context: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="[KIND] NAME", help="A component, preset or plugin; its kind may come first.")
    ],
    kind: Kind = None,
    as_json: options.AsJSON = False,
) -> None:
    """Show a component's options, a preset's settings, or a plugin's hooks."""
    if len(words) > 2 or (len(words) == 2 and kind is not None):
        raise ConfigError(f"Expected one NAME, or KIND NAME, as in `plugins show objective freeflow`; got {words}.")
    kind, name = words[0] if len(words) == 2 else kind, words[-1]
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
    for entry in found:
        _print_entry(registry, entry)
    for plugin in named:
        print_line(f"plugin {plugin.name}, {_origin(plugin)}")
        print_line(f"Hooks: {', '.join(plugin.hooks) or 'none'}")
        if plugin.api:
            print_line(f"Needs version {plugin.api} of the plugin API; this freeflow has {api_version()}.")
        if plugin.problem:
            print_line(f"{'Works in part only' if plugin.api else 'Not available'}: {plugin.problem}")
        _print_components([entry for entry in everything if entry.plugin == plugin.name])


def _print_entry(registry: Registry, entry: Entry) -> None:
    print_line(f"{entry.kind} {entry.name}: {entry.summary}")
    print_line(f"From plugin {entry.plugin}, {_origin(entry)}")
    item = entry.item
    if not isinstance(item, Component):
        if item.scores:
            print_line(f"Scores: {item.scores}")
        print_line(f"\n{registry.preset_text(item).rstrip()}\n")
        return
    if source := item.about()[1]:
        print_line(f"Source: {source}")
    settings = model_options(item.load_config_class())
    if not settings:
        print_line("It has no options.\n")
        return
    for setting in settings:  # no table: names, types and descriptions together are wider than most terminals
        facts = [setting.type, f"default {setting.default}" if setting.default != "required" else "required"]
        line = Text(setting.name, style="cyan").append(f"  {', '.join(filter(None, [*facts, setting.range]))}", "none")
        stdout().print(line, soft_wrap=True)
        stdout().print(Padding(Text(setting.description), (0, 0, 0, 4)))


def _print_components(found: Iterable[Entry]) -> None:
    name = Column("name", style="cyan", no_wrap=True)
    table = make_table([name, Column("summary", ratio=1), Column("plugin", no_wrap=True), "version"])
    kind = ""
    for entry in found:
        if entry.kind != kind:
            kind = entry.kind
            table.add_row(Text(kind, style="bold default"))
        table.add_row(Text(f"  {entry.name}"), *map(Text, (entry.summary, entry.plugin, entry.version)))
    stdout().print(table if table.row_count else "None.")


def _print_plugins(plugins: Iterable[PluginEntry]) -> None:
    name, distribution = Column("plugin", style="bold", no_wrap=True), Column("distribution", no_wrap=True)
    table = make_table([name, distribution, "version", "API", Column("hooks", ratio=1)])
    for plugin in plugins:
        hooks = ", ".join(hook.removeprefix("freeflow_") for hook in plugin.hooks) or "none"
        last = Text(plugin.problem, style="yellow") if plugin.problem else Text(hooks)
        table.add_row(*map(Text, (plugin.name, plugin.distribution, plugin.version, plugin.api)), last)
    stdout().print(table)


def _details(registry: Registry, entry: Entry) -> dict[str, Any]:
    details: dict[str, Any] = entry.as_dict()
    if isinstance(entry.item, Component):
        settings = model_options(entry.item.load_config_class())
        return details | {"source": entry.item.about()[1], "options": [setting._asdict() for setting in settings]}
    text = registry.preset_text(entry.item)
    return details | {"command": entry.item.command, "scores": entry.item.scores, "yaml": text}


def _origin(item: Entry | PluginEntry) -> str:
    return f"distribution {item.distribution} {item.version}".rstrip()


def check_plugin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A component, or a plugin for all of its components.")],
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="teacher, student, ...")] = None,
    assignments: Annotated[
        list[str] | None, options.text("--set", "OPTION=VALUE", "An option of the component. Repeatable.")
    ] = None,
    teacher: Annotated[str | None, options.value("NAME", "Teacher to put beside a student or an objective.")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="A teacher that is not trained: leave out the direction of time.")
    ] = False,
    waive: Annotated[
        list[str] | None, options.text("--waive", "CHECK=REASON", "A check to leave out, in words. Repeatable.")
    ] = None,
    as_json: options.AsJSON = False,
) -> None:
    """Check a component, or all of a plugin, against the contract of its kind. Exit code 1 when a check fails."""
    check_kind(kind)
    session = Session.of(context)
    registry = session.registry(teacher=teacher)
    components = [entry for entry in entries(registry) if entry.kind != PRESET]
    found = find(name, kind, components, plugin_entries(session.manager))
    found = found or [entry for entry in components if entry.plugin == name and kind in (None, entry.kind)]
    if not found:
        raise UnknownComponent(kind or "component with a contract", name, {entry.name for entry in components})
    given = lay_settings({}, assignments or ())
    if given and len(found) > 1:
        raise ConfigError(
            f"{name!r} stands for {len(found)} components, so --set is ambiguous. Check one of them: "
            f"{', '.join(f'{entry.name} --kind {entry.kind}' for entry in found)}."
        )
    waived = dict(_waiver(text) for text in waive or ())
    reports: list[dict[str, Any]] = []
    for entry in found:
        results = list(_check(registry, entry, given, teacher, random_weights, waived, alone=len(found) == 1))
        reports.append({"kind": entry.kind, "name": entry.name, "checks": results})
        if not as_json:
            _print_checked(entry, results)
    if as_json:
        print_json({"components": reports})
    if any(result.status == "failed" for report in reports for result in report["checks"]):
        raise typer.Exit(1)


def _check(
    registry: Registry,
    entry: Entry,
    given: Mapping[str, Any],
    teacher: str | None,
    random_weights: bool,
    waived: Mapping[str, str],
    *,
    alone: bool,
) -> Iterable[CheckResult]:
    from freeflow_core.testing import CONTRACTS, CheckResult, check_names, run_contract

    if not alone:
        try:
            resolve_choice(registry, entry.kind, ComponentChoice(name=entry.name), entry.kind)
        except ConfigError as error:
            command = f"freeflow plugins check {entry.name} --kind {entry.kind} --set OPTION=VALUE"
            return [CheckResult("builds from its configuration", "skipped", f"{error} Check it by itself: {command}")]
    names = check_names(CONTRACTS[entry.kind])
    known = {name.removeprefix("test_").replace("_", " ") for name in names}
    attributes: dict[str, Any] = {"waived": waived if alone else {k: v for k, v in waived.items() if k in known}}
    if teacher is not None and entry.kind in _WITH_TEACHER:
        attributes["teacher"] = teacher
    if random_weights and entry.kind == "teacher":
        attributes["trained"] = False
    return run_contract(CONTRACTS[entry.kind], component=entry.name, options=given, registry=registry, **attributes)


def _waiver(text: str) -> tuple[str, str]:
    check, separator, reason = text.partition("=")
    if not separator or not reason.strip():
        raise ConfigError(f"--waive {text!r} says no reason; expected CHECK=REASON, the check as the report names it.")
    return check.strip(), reason.strip()


def _print_checked(entry: Entry, results: Sequence[CheckResult]) -> None:
    def check(result: CheckResult) -> Text:
        text = Text(result.check)
        if result.message:
            text.append(f"\n{result.message}", style="default" if result.status == "failed" else "dim")
        return text

    print_line(f"{entry.kind} {entry.name}")
    print_columns((Text(r.status, style=_STYLES[r.status]), check(r)) for r in results)
    counts = ", ".join(f"{sum(r.status == status for r in results)} {status}" for status in _STYLES)
    print_line(f"{counts}\n")
