"""``freeflow compare``: several objectives, one teacher, one budget, one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freeflow_cli.commands import options
from freeflow_cli.commands.resolution import DEFAULT_PRESET
from freeflow_cli.session import Session
from freeflow_core.plugin import Registry


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
            help="images=N, seconds=N or forwards=N of training for every run; default: the preset's images.",
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
    from freeflow_cli.comparison import print_comparison
    from freeflow_core import api

    with session.progress():
        result = api.compare(resolved, output=output, dry_run=dry_run, manager=session.manager)
    print_comparison(result)
    if result.failed:
        raise typer.Exit(1)
