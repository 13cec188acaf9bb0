"""``freeflow evaluate``: the table of scores again, for a trained student or a teacher alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freeflow_cli.commands import options
from freeflow_cli.commands.options import CONFIG_NAME, Request
from freeflow_cli.results import print_result
from freeflow_cli.session import Session
from freeflow_core.errors import ConfigError


def evaluate(
    context: typer.Context,
    student: options.TrainedStudent = None,
    teacher: options.TeacherName = None,
    preset: options.PresetName = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    output: Annotated[Path | None, options.folder("Write scores.json and scores.md here.")] = None,
) -> None:
    """Score a student, or a teacher alone, as the end of a run does. A run folder brings its own configuration."""
    if student is None and teacher is None:
        raise ConfigError(
            "Nothing to evaluate. Give --run PATH (the folder of a run, or a student file) or --teacher NAME."
        )
    session = Session.of(context)
    if config is None and preset is None and student is not None:
        config = saved_config(student)
    request = Request(
        "distill", preset=preset, file=config, components={"teacher": teacher}, assignments=tuple(assignments or ())
    )
    resolved = request.load(session)
    from freeflow_core import api

    with session.progress():
        result = api.evaluate(resolved, student=student, output=output, manager=session.manager)
    print_result(result, "evaluate", resolved)


def saved_config(student: Path) -> Path:
    """The configuration in a run folder, or beside the student file that lies in one.

    Raises:
        ConfigError: there is no such path, or nothing there that says what to measure.
    """
    if not student.exists():
        raise ConfigError(
            f"There is no {student}; expected the folder of a run, or a student file. For a published student say what "
            "to measure, with --preset NAME or --config FILE."
        )
    file = (student if student.is_dir() else student.parent) / CONFIG_NAME
    if not file.is_file():
        raise ConfigError(
            f"There is no {file}, so what to measure is unknown. Name it with --preset NAME or --config FILE."
        )
    return file
