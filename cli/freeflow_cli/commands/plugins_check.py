"""``freeflow plugins check``: the contract of a component's kind, with what it expects and what came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from freeflow_cli.catalogue import PRESET, Entry, check_kind, entries, find, plugin_entries
from freeflow_cli.commands import options
from freeflow_cli.console import stdout
from freeflow_cli.results import print_columns, print_json, print_line
from freeflow_cli.session import Session
from freeflow_core.config import ComponentChoice
from freeflow_core.config.load import lay_settings, resolve_choice
from freeflow_core.errors import ConfigError, UnknownComponent
from freeflow_core.plugin import Registry

if TYPE_CHECKING:
    from freeflow_core.testing import CheckResult

_STYLES = {"ok": "green", "failed": "bold red", "skipped": "yellow"}
_WITH_TEACHER = ("student", "objective", "evaluator", "verifier")


def check_plugin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A component, or a plugin for all of its components.")],
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="teacher, student, ...")] = None,
    assignments: Annotated[
        list[str] | None, options.text("--set", "OPTION=VALUE", "An option of the component. Repeatable.")
    ] = None,
    teacher: Annotated[
        str | None, options.text("--teacher", "NAME", "Teacher to put beside a student or an objective.")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="A teacher that is not trained: leave out the direction of time.")
    ] = False,
    as_json: options.AsJSON = False,
) -> None:
    """Check a component, or all of a plugin, against the contract of its kind. Exit code 1 when a check fails."""
    check_kind(kind)
    session = Session.of(context)
    registry = session.registry(teacher=teacher)
    found = _components(name, kind, registry, session)
    given = lay_settings({}, assignments or ())
    if given and len(found) > 1:
        raise ConfigError(
            f"{name!r} stands for {len(found)} components, so --set is ambiguous. Check one of them: "
            f"{', '.join(f'{entry.name} --kind {entry.kind}' for entry in found)}."
        )
    console, reports, broken = stdout(), [], False
    for entry in found:
        results = list(_check(registry, entry, given, teacher, random_weights, alone=len(found) == 1))
        reports.append({"kind": entry.kind, "name": entry.name, "checks": results})
        broken = broken or any(result.status == "failed" for result in results)
        if not as_json:
            _print(console, entry, results)
    if as_json:
        print_json({"components": reports})
    if broken:
        raise typer.Exit(1)


def _components(name: str, kind: str | None, registry: Registry, session: Session) -> list[Entry]:
    everything, plugins = entries(registry), plugin_entries(session.manager)
    components = [entry for entry in everything if entry.kind != PRESET]
    matching = find(name, kind, components, plugins)
    if not matching:
        matching = [entry for entry in components if entry.plugin == name and kind in (None, entry.kind)]
    if not matching:
        raise UnknownComponent(kind or "component with a contract", name, {entry.name for entry in components})
    return matching


def _check(
    registry: Registry,
    entry: Entry,
    given: Mapping[str, Any],
    teacher: str | None,
    random_weights: bool,
    *,
    alone: bool,
) -> Iterable[CheckResult]:
    from freeflow_core.testing import CONTRACTS, CheckResult, run_contract

    if not alone:
        try:
            resolve_choice(registry, entry.kind, ComponentChoice(name=entry.name), entry.kind)
        except ConfigError as error:
            command = f"freeflow plugins check {entry.name} --kind {entry.kind} --set OPTION=VALUE"
            return [CheckResult("builds from its configuration", "skipped", f"{error} Check it by itself: {command}")]
    attributes: dict[str, Any] = {}
    if teacher is not None and entry.kind in _WITH_TEACHER:
        attributes["teacher"] = teacher
    if random_weights and entry.kind == "teacher":
        attributes["trained"] = False
    return run_contract(CONTRACTS[entry.kind], component=entry.name, options=given, registry=registry, **attributes)


def _print(console: Console, entry: Entry, results: Sequence[CheckResult]) -> None:
    def check(result: CheckResult) -> Text:
        text = Text(result.check)
        if result.message:
            text.append(f"\n{result.message}", style="default" if result.status == "failed" else "dim")
        return text

    print_line(console, f"{entry.kind} {entry.name}")
    print_columns(console, ((Text(r.status, style=_STYLES[r.status]), check(r)) for r in results))
    counts = ", ".join(f"{sum(r.status == status for r in results)} {status}" for status in _STYLES)
    print_line(console, f"{counts}\n")
