"""A trained student as one file: weights, the component that rebuilds it, and what it was trained for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freeflow_core import __version__
from freeflow_core.config import ComponentChoice, RunConfig
from freeflow_core.errors import CheckpointError, PluginError
from freeflow_core.interfaces import StartTimes, Student
from freeflow_core.network_file import load_network, save_network
from freeflow_core.plugin import Registry


@dataclass(frozen=True)
class StudentFile:
    """A student and what its file says of it: the teacher and codec it belongs to."""

    student: Student
    teacher: ComponentChoice | None
    codec: ComponentChoice
    metadata: dict[str, Any]


def save_student(path: Path, config: RunConfig, student: Student, images: int) -> None:
    """Write the student. Raises ``CheckpointError`` when that fails; nothing half-written stays."""
    metadata = {
        "component": config.student.name,
        "start_times": student.start_times.value,
        "objective": config.objective.name,
        "teacher": config.teacher.model_dump(mode="json") if config.teacher else None,
        "codec": config.codec.model_dump(mode="json"),
        "images": images,
        "seed": config.seed,
        "freeflow_version": __version__,
    }
    save_network(path, student.network_state(), metadata)


def load_student(path: Path, registry: Registry) -> StudentFile:
    """Rebuild a student from its file.

    Raises:
        CheckpointError: missing, damaged, not a student, or of a plugin that is not installed.
    """
    if path.is_dir():
        path = path / "student.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"There is no student file {path}. Expected the folder of a finished run, or the student.safetensors in it."
        )
    state, metadata = load_network(path)
    name = metadata.get("component")
    if not isinstance(name, str):
        raise CheckpointError(f"{path} holds a network but does not say which student it is; expected a student file.")
    if name not in registry.components("student"):
        raise CheckpointError(f"{path} holds a student of kind {name!r}, which no installed plugin provides.")
    target = registry.component("student", name).load_target()
    student = target.from_state(state)
    if not isinstance(student, Student):
        raise PluginError(f"The student {name!r} was rebuilt as a {type(student).__name__}, not a Student.")
    student.start_times = StartTimes(metadata.get("start_times", StartTimes.ANY.value))
    teacher = metadata.get("teacher")
    return StudentFile(
        student.eval(),
        ComponentChoice.model_validate(teacher) if teacher else None,
        ComponentChoice.model_validate(metadata.get("codec", "pixels")),
        metadata,
    )
