"""``freeflow fetch``: published weights, into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freeflow_cli.commands import options
from freeflow_cli.session import Session
from freeflow_core.errors import ConfigError
from freeflow_core.plugin import Registry


def _complete(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    return [(item.name, item.summary) for item in Registry(Session.of(context).manager).weights().values()]


def fetch(
    context: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", autocompletion=_complete, help="Weights, by name.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List all weights; the default without a name.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Download even what is in the cache.")] = False,
    from_file: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Copy this file into the cache, checked, rather than download."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read cached files again and compare; without a name all of them.")
    ] = False,
    as_json: options.AsJSON = False,
) -> None:
    """Fetch published weights into the cache, and print their paths. Without a name: list them.

    Runs fetch what they need by themselves. FREEFLOW_CACHE is the folder, FREEFLOW_OFFLINE=1 forbids downloads.
    """
    from freeflow_cli import weights  # with an HTTP library behind it: not a price for --help
    from freeflow_core.weights import WeightStore

    registry, store = Session.of(context).registry(), WeightStore()
    chosen = [registry.weight(name) for name in dict.fromkeys(names or ())]  # a misspelt one is told before any work
    _check_options(len(chosen), show_list=show_list, force=force, from_file=from_file, verify=verify, as_json=as_json)
    everything = list(registry.weights().values())
    if verify:
        weights.verify(store, chosen or [weight for weight in everything if store.status(weight).cached])
    elif show_list or not chosen:
        weights.show(store, chosen or everything, as_json=as_json)
    else:
        for weight in chosen:
            weights.fetch(store, weight, force=force, from_file=from_file)


def _check_options(
    num_names: int, *, show_list: bool, force: bool, from_file: Path | None, verify: bool, as_json: bool
) -> None:
    given = {"--list": show_list, "--force": force, "--from": from_file is not None, "--verify": verify}
    together = [option for option, present in given.items() if present]
    if len(together) > 1:
        raise ConfigError(f"{' and '.join(together)} exclude each other; give one of them.")
    if from_file is not None and num_names != 1:
        raise ConfigError(f"--from FILE is the file of one weight; expected one NAME, got {num_names}.")
    if force and not num_names:
        raise ConfigError("--force needs the NAME of what to download again.")
    if as_json and (verify or (num_names and not show_list)):
        raise ConfigError("--json belongs to the list: freeflow fetch --list --json.")
