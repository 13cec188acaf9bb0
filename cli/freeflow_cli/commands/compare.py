"""``freeflow compare``: several objectives, one teacher, one budget, one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freeflow_cli.commands import options
from freeflow_cli.console import mlflow_commands, print_files, print_line, print_next, say, shown_path, stdout, warn
from freeflow_cli.session import Session
from freeflow_cli.tables import fitted_tables
from freeflow_core.plugin import Registry

if TYPE_CHECKING:
    from freeflow_core.api import CompareResult


def _objectives(context: typer.Context, incomplete: str) -> list[str]:
    before, comma, _ = incomplete.rpartition(",")
    known = Registry(Session.of(context).manager).components("objective")
    return [f"{before}{comma}{name}" for name in known if name not in before.split(",")]


def compare(
    context: typer.Context,
    teacher: options.TeacherName = None,
    objectives: Annotated[
        str | None, typer.Option(metavar="NAMES", autocompletion=_objectives, help="Objectives, with commas: a,b,c.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each objective; default: 3.")] = None,
    budget: Annotated[str | None, options.value("KIND=N", "images=N or forwards=N; default: the preset's.")] = None,
    source: Annotated[str | None, options.named("source", "Data for the objectives that train on data.")] = None,
    student: options.StudentName = None,
    preset: Annotated[
        str | None,
        options.presets(
            ["compare", "distill"],
            "A comparison's preset, or one of distill to start from. Default without --config: digits.",
        ),
    ] = None,
    config: Annotated[Path | None, options.value("FILE", "Settings of the runs, and a section `compare`.")] = None,
    assignments: Annotated[list[str] | None, options.settings("One setting of all runs, over the presets.")] = None,
    assignments_for: Annotated[
        list[str] | None,
        options.text("--set-for", "OBJECTIVE:KEY=VALUE", "One setting of one objective's runs. Repeatable."),
    ] = None,
    sweep: Annotated[str | None, options.value("KEY=V1,V2,...", "A setting that takes several values in turn.")] = None,
    score: Annotated[str | None, options.value("NAME", "Score to compare; default: a distance to data.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The first seed.")] = None,
    name: Annotated[str | None, options.value("NAME", "Names the folder; default: the preset's or teacher's.")] = None,
    output: Annotated[Path | None, options.folder("Folder of the comparison; default: runs/compare-NAME.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure costs; train and write nothing.")] = False,
) -> None:
    """Compare objectives on one teacher with one budget. The same command again goes on where it stopped.

    Exit code 1 when a run failed; the others are finished all the same, and the table is written.
    """
    from freeflow_core.config.compare import load_compare_config
    from freeflow_core.config.load import DEFAULT_PRESETS

    session = Session.of(context)
    components = {"teacher": teacher, "source": source, "student": student}
    resolved = load_compare_config(
        session.registry(**components),
        preset=preset if preset or config else DEFAULT_PRESETS["compare"],
        file=config,
        overrides=options.overrides(components, seed=seed, name=name),
        comparison={
            "objectives": [part.strip() for part in objectives.split(",") if part.strip()] if objectives else None,
            "seeds": seeds,
            "budget": budget,
            "sweep": sweep,
            "score": score,
        },
        assignments=tuple(assignments or ()),
        assignments_for=tuple(assignments_for or ()),
    )
    with Session.loading():
        from freeflow_core import api

    origin = options.origin(resolved.preset, config)
    with session.progress(origin):
        result = api.compare(resolved, output=output, dry_run=dry_run, progress=False, manager=session.manager)
    print_comparison(result, origin)
    if result.table.errors and result.status != "shared":
        raise typer.Exit(1)


def print_comparison(result: CompareResult, origin: str) -> None:
    """What the comparison came to: in one table where the terminal is wide enough.

    ``origin`` is where the settings come from, in words.
    """
    from freeflow_core.tools.compare.table import cells

    table = result.table
    lines = [cells(table, row) for row in table.rows]
    keys = 1 + (table.setting is not None)
    planned = result.status == "planned"
    done = all(row.finished == row.planned for row in table.rows)
    scores = list(lines[0])[keys : keys + len(table.steps) + 1]
    hidden = {*(scores if planned else ()), *(["runs"] if planned or done else ())}
    titles = [title for title in lines[0] if title not in hidden]
    if not planned:
        seeds = f"{table.rows[0].planned} seeds" if done and table.rows[0].planned > 1 else "seeds"
        print_line(f"{table.score or 'No score yet'}: mean ± standard deviation over {seeds}")
    console = stdout()
    for part in fitted_tables(titles, [[line[t] for t in titles] for line in lines], keys=keys, width=console.width):
        console.print(part)
    if not planned:
        for title, score, fidelity in table.teacher_lines:
            print_line(f"{title}: {table.score} {score}, fidelity {fidelity}")
    if planned:
        runs = sum(row.planned for row in table.rows)
        place = f"{shown_path(result.folder)}, settings of the {origin}"
        print_line(f"Dry run: {runs} runs would go to {place}; nothing was trained.")
        return
    print_files(result.files)
    if result.status == "shared":
        say("Other processes are at work on the last runs; the one that leads writes the table in the end.")
        return
    for name, error in table.errors.items():
        warn(f"The run {name} failed: {error}")
    if table.errors:
        say("The same command again tries the failed runs once more, and leaves the others as they are.")
    print_next(mlflow_commands(result.folder))
