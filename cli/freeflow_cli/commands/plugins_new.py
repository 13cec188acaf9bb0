"""``freeflow plugins new``: the beginning of a plugin, as an installable package."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from freeflow_cli.scaffold.kinds import TEMPLATES
from freeflow_cli.scaffold.names import check_names
from freeflow_cli.scaffold.package import check_folder, package_files, run_commands, write_package
from freeflow_cli.session import Session
from freeflow_core.errors import ConfigError, suggest


def new_plugin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the package and its component, such as my-flow.")],
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help=f"One of {', '.join(TEMPLATES)}.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write; default: NAME.")
    ] = None,
) -> None:
    """Write an installable package with a small component that works, to start from."""
    if kind not in TEMPLATES:
        raise ConfigError(
            f"No package can be written for the kind {kind!r}.{suggest(kind, TEMPLATES)} Known: {', '.join(TEMPLATES)}."
        )
    names = check_names(name, kind, Session.of(context).registry())
    folder = Path(name) if output is None else output
    check_folder(folder)
    files = package_files(names, kind)
    write_package(folder, files)
    typer.echo(f"Wrote the {kind} {name!r} to {folder}: {', '.join(files)}.\n\nNext:\n")
    for command in next_commands(name, kind, folder):
        typer.echo(f"  {command}")
    typer.echo(f"\nThen make {folder / names.package / f'{kind}.py'} yours; its README.md says what to change first.")


def next_commands(name: str, kind: str, folder: Path) -> list[str]:
    """Install, list, check, run: from the current folder, in this order."""
    place = folder.as_posix()
    if not folder.is_absolute() and not place.startswith("."):
        place = f"./{place}"
    return [
        f"pip install -e {shlex.quote(place)}",
        f"freeflow plugins list --kind {kind}",
        f"freeflow plugins check {name}",
        *run_commands(name, shlex.quote((folder / "example.yaml").as_posix()), kind),
    ]
