"""``freeflow compare``: several objectives, one teacher, one budget, one table."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from freeflow_cli import formats
from freeflow_cli.commands import options
from freeflow_cli.commands.options import DEFAULT_PRESET
from freeflow_cli.console import output, say, warn
from freeflow_cli.results import MLFLOW_DATABASE, print_files, print_line, print_next
from freeflow_cli.session import Session
from freeflow_core.plugin import Registry

if TYPE_CHECKING:
    from freeflow_core.api import CompareResult


def _presets(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    registry = Registry(Session.of(context).manager)
    found = [*registry.presets("compare").values(), *registry.presets("distill").values()]
    return [(preset.name, preset.summary) for preset in found]


def _objectives(context: typer.Context, incomplete: str) -> list[str]:
    """Names after the last comma."""
    before, comma, _ = incomplete.rpartition(",")
    known = Registry(Session.of(context).manager).components("objective")
    return [f"{before}{comma}{name}" for name in known if name not in before.split(",")]


def compare(
    context: typer.Context,
    teacher: options.TeacherName = None,
    objectives: Annotated[
        str | None,
        typer.Option(
            "--objectives", metavar="NAMES", autocompletion=_objectives, help="Objectives, with commas: a,b,c."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Runs of each objective; default: 3.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="KIND=N",
            help="images=N or forwards=N of training for every run; default: the preset's images.",
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="NAME", help="Data for the objectives that train on data.")
    ] = None,
    student: options.StudentName = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            autocompletion=_presets,
            help="A comparison's preset, or one of distill to start from; without it and --config: digits.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="YAML or JSON: settings of the runs, and a section `compare`."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting of all runs. Repeatable, laid over the presets."),
    ] = None,
    assignments_for: Annotated[
        list[str] | None,
        typer.Option(
            "--set-for", metavar="OBJECTIVE:KEY=VALUE", help="One setting of one objective's runs. Repeatable."
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option("--sweep", metavar="KEY=V1,V2,...", help="A setting that takes several values in turn."),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option("--score", metavar="NAME", help="Score to compare, e.g. fd_data; default: a distance to data."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The first seed.")] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Names the folder; default: the preset's, or the teacher."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the comparison; default: runs/compare-NAME."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure what each objective costs; train and write nothing.")
    ] = False,
) -> None:
    """Compare objectives on one teacher with one budget. The same command again goes on where it stopped.

    Exit code 1 when a run failed; the others are finished all the same, and the table is written.
    """
    from freeflow_core.config.load_compare import load_compare_config, parse_sweep

    session = Session.of(context)
    components = {"teacher": teacher, "source": source, "student": student}
    overrides: dict[str, object] = {kind: {"name": chosen} for kind, chosen in components.items() if chosen}
    overrides |= {key: value for key, value in {"seed": seed, "name": name}.items() if value is not None}
    resolved = load_compare_config(
        session.registry(),
        preset=preset if preset or config else DEFAULT_PRESET,
        file=config,
        overrides=overrides,
        comparison={
            "objectives": [part.strip() for part in objectives.split(",") if part.strip()] if objectives else None,
            "seeds": seeds,
            "budget": budget,
            "sweep": None if sweep is None else parse_sweep(sweep),
            "score": score,
        },
        assignments=tuple(assignments or ()),
        assignments_for=tuple(assignments_for or ()),
    )
    from freeflow_core import api

    with session.progress():
        result = api.compare(resolved, output=output, dry_run=dry_run, manager=session.manager)
    print_comparison(result)
    if result.failed:
        raise typer.Exit(1)


_GAP = 3
_BREAK = re.compile(r"(?<=[/_])| ")


def print_comparison(result: CompareResult) -> None:
    """Two tables, since together they are wider than most terminals: scores, then what they cost."""
    from freeflow_core.tools.compare.files import cells, headers

    table, console = result.table, output()
    titles, rows = headers(table), [cells(table, row) for row in table.rows]
    keys = 1 + (table.setting is not None)
    scores = keys + len(table.steps) + 1
    planned = result.status == "planned"
    if not planned:
        print_line(console, f"{table.score or 'No score yet'}: mean ± standard deviation over seeds")
        console.print(
            _table([*titles[:scores], titles[-1]], [[*row[:scores], row[-1]] for row in rows], keys, console.width)
        )
        for title, score, fidelity in result.teacher_lines:
            print_line(console, f"{title}: {table.score} {score}, fidelity {fidelity}")
    costs = [[*row[:keys], *row[scores:-1]] for row in rows]
    console.print(_table([*titles[:keys], *titles[scores:-1]], costs, keys, console.width))
    if planned:
        runs = sum(row.planned for row in table.rows)
        print_line(console, f"Dry run: {runs} runs would go to {formats.path(result.folder)}; nothing was trained.")
        return
    print_files(console, result.files)
    for name, error in result.failed.items():
        warn(f"The run {name} failed: {error}")
    if result.failed:
        say("The same command again tries the failed runs once more, and leaves the others as they are.")
    print_next(console, _next_commands(result))


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], keys: int, width: int) -> Table:
    """Titles are broken when the table would be wider than ``width``; what identifies a row never is."""
    columns = zip(titles, *rows, strict=True)
    if sum(max(map(len, column)) + _GAP for column in columns) > width:
        titles = [_BREAK.sub("\n", title) for title in titles]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for number, title in enumerate(titles):
        first = number < keys
        table.add_column(Text(title), justify="left" if first else "right", overflow="fold", no_wrap=first)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _next_commands(result: CompareResult) -> list[str]:
    """MLflow's view of all runs, where its store lies beside the folder."""
    database = result.folder.resolve().parent / MLFLOW_DATABASE
    if not database.is_file() or os.environ.get("MLFLOW_TRACKING_URI"):
        return []
    return [f"mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{database.as_posix()}')}"]
