"""What ``freeflow fetch`` does, and how it shows that."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from freeflow_cli import formats
from freeflow_cli.console import messages, output, say
from freeflow_cli.errors import ERROR_STYLE
from freeflow_cli.results import print_line
from freeflow_core.errors import DownloadError
from freeflow_core.plugin import WeightFile
from freeflow_core.weights import LoggedProgress, OnProgress, WeightStatus, WeightStore, data_size, describe_origin


def fetch(store: WeightStore, weight: WeightFile, *, force: bool, from_file: Path | None) -> None:
    """Bring one weight into the cache; its path goes to stdout."""
    if not force and from_file is None and (found := store.find(weight)) is not None:
        say(f"The weights {weight.name!r} are in the cache.")
        print_line(output(), str(found))
        return
    with _progress(weight.name) as on_progress:
        if from_file is not None:
            path = store.add(weight, from_file, on_progress=on_progress)
        else:
            path = store.fetch(weight, force=force, on_progress=on_progress)
    status = store.status(weight)
    proof = "as published" if weight.sha256 else f"{status.sha256} (the plugin knows none to compare with)"
    say(f"The weights {weight.name!r} are in the cache: {data_size(status.size or 0)}, SHA-256 {proof}.")
    print_line(output(), str(path))


def verify(store: WeightStore, weights: Sequence[WeightFile]) -> None:
    """Compare every file, whatever the one before it was like. Raises :class:`typer.Exit` when one is wrong."""
    broken = 0
    for weight in weights:
        try:
            with _progress(weight.name) as on_progress:
                sha256 = store.verify(weight, on_progress=on_progress)
        except DownloadError as error:
            broken += 1
            say(str(error), title="Error", style=ERROR_STYLE)
        else:
            print_line(output(), f"{weight.name}: {'as published' if weight.sha256 else 'as it came in'} ({sha256})")
    if broken:
        raise typer.Exit(1)
    if not weights:
        say("The cache holds no weights.")


def show(store: WeightStore, weights: Sequence[WeightFile], *, as_json: bool) -> None:
    """Names, sizes, origins and paths."""
    statuses = [store.status(weight) for weight in weights]
    if as_json:
        typer.echo(json.dumps([_details(status) for status in statuses], indent=2, ensure_ascii=False))
        return
    console = output()
    if not statuses:
        print_line(console, "No plugin offers weights.")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", style="cyan", overflow="fold")
    table.add_column("summary", ratio=1)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("from", overflow="fold")
    table.add_column("cached", no_wrap=True)
    for status in statuses:
        weight = status.weight
        size = data_size(status.size) if status.size is not None else "-"
        table.add_row(*map(Text, (weight.name, weight.summary, size, describe_origin(weight), _state(status))))
    console.print(table)
    print_line(console, f"Cache: {formats.path(store.folder)}")
    wide = max(len(status.weight.name) for status in statuses)
    for status in statuses:  # not a column: a path that is folded cannot be copied
        print_line(console, f"  {status.weight.name:<{wide}}  {status.path.relative_to(store.folder)}")


def _state(status: WeightStatus) -> str:
    if status.cached:
        return "yes"
    if not status.partial:
        return "no"
    return f"{status.partial / status.size:.0%}" if status.size else data_size(status.partial)


def _details(status: WeightStatus) -> dict[str, Any]:
    weight = asdict(status.weight)
    return weight | {
        "size": status.size,
        "sha256": status.sha256,
        "cached": status.cached,
        "partial": status.partial,
        "path": str(status.path),
    }


@contextmanager
def _progress(name: str) -> Iterator[OnProgress]:
    """A bar on a terminal, a line now and then everywhere else."""
    console = messages()
    if not console.is_interactive:
        yield LoggedProgress(name)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
