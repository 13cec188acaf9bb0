"""``freeflow fetch`` and ``freeflow export``: published formats, in and out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column
from rich.text import Text

from freeflow_cli.commands import options
from freeflow_cli.console import ERROR_STYLE, messages, print_files, print_json, print_line, say, shown_path, stdout
from freeflow_cli.session import Session
from freeflow_cli.tables import make_table
from freeflow_core.errors import ConfigError, DownloadError
from freeflow_core.plugin import WeightFile

if TYPE_CHECKING:
    from freeflow_core.weights import OnProgress, WeightStatus, WeightStore


_complete = options.completion(lambda registry: [registry.weights()])


def fetch(
    context: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", autocompletion=_complete, help="Weights, by name.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List all weights; the default without a name.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Download even what is in the cache.")] = False,
    from_file: Annotated[
        Path | None, options.text("--from", "FILE", "Copy this file into the cache, checked, rather than download.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare cached files again; without a name all.")] = False,
    max_gib: Annotated[
        float | None, typer.Option("--max-gib", min=0.001, help="Largest file of unknown size and hash; default: 32.")
    ] = None,
    as_json: options.AsJSON = False,
) -> None:
    """Fetch published weights into the cache, and print their paths. Without a name: list them.

    Runs fetch what they need by themselves. FREEFLOW_CACHE is the folder, FREEFLOW_OFFLINE=1 forbids downloads.
    """
    from freeflow_core.weights import TransferOptions, WeightStore  # with an HTTP library behind it

    transfer = TransferOptions() if max_gib is None else TransferOptions(max_bytes=round(max_gib * 2**30))
    registry, store = Session.of(context).registry(), WeightStore(options=transfer)
    chosen = [registry.weight(name) for name in dict.fromkeys(names or ())]  # a misspelt one is told before any work
    given = {"--list": show_list, "--force": force, "--from": from_file is not None, "--verify": verify}
    if len(together := [option for option, present in given.items() if present]) > 1:
        raise ConfigError(f"{' and '.join(together)} exclude each other; give one of them.")
    if from_file is not None and len(chosen) != 1:
        raise ConfigError(f"--from FILE is the file of one weight; expected one NAME, got {len(chosen)}.")
    if force and not chosen:
        raise ConfigError("--force needs the NAME of what to download again.")
    if as_json and (verify or (chosen and not show_list)):
        raise ConfigError("--json belongs to the list: freeflow fetch --list --json.")
    everything = list(registry.weights().values())
    if verify:
        _verify(store, chosen or [weight for weight in everything if store.status(weight).cached])
    elif show_list or not chosen:
        _show(store, chosen or everything, as_json=as_json)
    else:
        for weight in chosen:
            _fetch(store, weight, force=force, from_file=from_file)


def _fetch(store: WeightStore, weight: WeightFile, *, force: bool, from_file: Path | None) -> None:
    from freeflow_core.weights import data_size

    if not force and from_file is None and (found := store.find(weight)) is not None:
        say(f"The weights {weight.name!r} are in the cache.")
        print_line(str(found))
        return
    with _progress(weight.name) as told:
        copied = None if from_file is None else store.add(weight, from_file, on_progress=told)
        path = copied or store.fetch(weight, force=force, on_progress=told)
    status = store.status(weight)
    proof = "as published" if weight.sha256 else f"{status.sha256} (the plugin knows none to compare with)"
    say(f"The weights {weight.name!r} are in the cache: {data_size(status.size or 0)}, SHA-256 {proof}.")
    print_line(str(path))


def _verify(store: WeightStore, weights: Sequence[WeightFile]) -> None:
    """Compare every file, whatever the one before it was like. Raises :class:`typer.Exit` when one is wrong."""
    broken = False
    for weight in weights:
        try:
            with _progress(weight.name) as on_progress:
                sha256 = store.verify(weight, on_progress=on_progress)
        except DownloadError as error:
            broken = True
            say(str(error), title="Error", style=ERROR_STYLE)
        else:
            print_line(f"{weight.name}: {'as published' if weight.sha256 else 'as it came in'} ({sha256})")
    if broken:
        raise typer.Exit(1)
    if not weights:
        say("The cache holds no weights.")


def _show(store: WeightStore, weights: Sequence[WeightFile], *, as_json: bool) -> None:
    from freeflow_core.weights import data_size, describe_origin

    statuses = [store.status(weight) for weight in weights]
    if as_json:
        known = [asdict(status) for status in statuses]
        print_json([values.pop("weight") | values for values in known])
        return
    if not statuses:
        print_line("No plugin offers weights.")
        return
    names, sizes = Column("name", style="cyan", no_wrap=True), Column("size", justify="right", no_wrap=True)
    table = make_table([names, Column("summary", ratio=1), sizes, Column("from", overflow="fold"), "cached"])
    for status in statuses:
        weight, size = status.weight, data_size(status.size) if status.size is not None else "-"
        row = (weight.name, weight.summary, size, describe_origin(weight), _state(status))
        table.add_row(*map(Text, row))
    stdout().print(table)
    print_line(f"Cache: {shown_path(store.folder)}")
    wide = max(len(status.weight.name) for status in statuses)
    for status in statuses:  # not a column: a path that is folded cannot be copied
        inside = status.path.is_relative_to(store.folder)  # else in the user's Hugging Face cache
        path = status.path.relative_to(store.folder) if inside else status.path
        print_line(f"  {status.weight.name:<{wide}}  {path}")


def _state(status: WeightStatus) -> str:
    from freeflow_core.weights import data_size

    if status.cached:
        return "yes"
    if not status.partial:
        return "no"
    return f"{status.partial / status.size:.0%}" if status.size else data_size(status.partial)


@contextmanager
def _progress(name: str) -> Iterator[OnProgress]:
    """A bar on a terminal, a line now and then everywhere else."""
    console = messages()
    if not console.is_interactive:
        from freeflow_core.weights import LoggedProgress

        yield LoggedProgress(name)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def export(
    context: typer.Context,
    student: options.TrainedStudent = None,
    output: Annotated[
        Path | None, options.text("--output", "PATH", "File to write; diffusers: a folder. Default: student.*", "-o")
    ] = None,
    format_name: Annotated[
        Literal["safetensors", "pt", "pt2", "onnx", "diffusers"] | None,
        typer.Option("--format", help="Default: by the suffix of --output, else pt."),
    ] = None,
) -> None:
    """Write a trained student for other programs, codec included where it makes the images.

    safetensors, pt: tensors named as its field publishes them. pt2: torch.export. onnx: with a script that samples
    without torch. diffusers: a pipeline's folder.
    """
    if student is None:
        raise ConfigError("Nothing to export. Give --run PATH: the folder of a run, or a student file.")
    if output is None:
        output = Path("student-diffusers" if format_name == "diffusers" else f"student.{format_name or 'pt'}")
    if output.exists():
        raise ConfigError(f"{output} exists already and is left as it is. Choose another --output.")
    session = Session.of(context)
    with Session.loading():
        from freeflow_core import api

    print_line(api.export(student, output, format=format_name, manager=session.manager))


def push(
    context: typer.Context,
    repository: Annotated[str | None, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub.")] = None,
    student: options.TrainedStudent = None,
    private: Annotated[bool, typer.Option("--private", help="Where the repository has to be made.")] = False,
    diffusers: Annotated[bool, typer.Option("--diffusers", help="Add a pipeline that diffusers loads.")] = False,
    licence: Annotated[
        str | None, options.text("--licence", "NAME", "Of the weights, e.g. mit; default: the teacher's, if known.")
    ] = None,
    output: Annotated[Path | None, options.folder("Write the files there, and push nothing.")] = None,
) -> None:
    """Publish a trained student on the Hugging Face hub, with a model card made from its run.

    `freeflow sample --student hf:OWNER/NAME` draws from it. HF_TOKEN, or the login of `hf auth login`, is used.
    """
    if student is None:
        raise ConfigError("Nothing to push. Give --run PATH: the folder of a run, or a student file.")
    if (repository is None) == (output is None):
        raise ConfigError(
            "Expected either the repository to push to, OWNER/NAME, or --output DIR to look at the files."
        )
    session = Session.of(context)
    with Session.loading():
        from freeflow_core import api

    loaded = api.load_student(student, manager=session.manager)
    if repository is not None:
        print_line(loaded.push_to_hub(repository, private=private, licence=licence, diffusers=diffusers))
    elif output is not None:
        files = loaded.save_pretrained(output, licence=licence, diffusers=diffusers)
        print_files({name: output / name for name in files})
