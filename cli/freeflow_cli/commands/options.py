"""The options that several commands share, with completion of component names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from freeflow_cli.session import Session
from freeflow_core.plugin import Registry


def _completion(kind: str) -> Callable[[typer.Context, str], list[tuple[str, str]]]:
    def complete(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        registry = Registry(Session.of(context).manager)
        if kind == "preset":
            presets = [*registry.presets("distill").values(), *registry.presets("pretrain").values()]
            return [(preset.name, preset.summary) for preset in presets]
        return [(item.name, item.summary) for item in registry.components(kind).values()]

    return complete


TeacherName = Annotated[
    str | None,
    typer.Option("--teacher", metavar="NAME", autocompletion=_completion("teacher"), help="Teacher, by name."),
]
ObjectiveName = Annotated[
    str | None,
    typer.Option("--objective", metavar="NAME", autocompletion=_completion("objective"), help="What is minimised."),
]
StudentName = Annotated[
    str | None,
    typer.Option("--student", metavar="NAME", autocompletion=_completion("student"), help="Network to train."),
]
SourceName = Annotated[
    str | None,
    typer.Option("--source", metavar="NAME", autocompletion=_completion("source"), help="Training data."),
]
CodecName = Annotated[
    str,
    typer.Option(
        "--codec", metavar="NAME", autocompletion=_completion("codec"), help="What makes latents of the images."
    ),
]
TrainedStudent = Annotated[
    Path | None,
    typer.Option("--run", "--student", metavar="PATH", help="Folder of a run, a student file, or a published student."),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        autocompletion=_completion("preset"),
        help="Start from this preset; without it and --config: digits.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="YAML or JSON file; complete unless it names a preset (preset: NAME)."
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting, e.g. training.images=1000. Repeatable, comes last."),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every training draw.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to write; default: a new one in runs/.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint of the run in --output, else the newest run.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Build everything, print what would happen, and stop.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
