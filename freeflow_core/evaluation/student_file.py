"""A trained student as one file: weights, the component that rebuilds it, and what it was trained for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from freeflow_core import __version__
from freeflow_core.config import ComponentChoice, RunConfig
from freeflow_core.engine.build import Builder
from freeflow_core.errors import CheckpointError, ConfigError, PluginError
from freeflow_core.interfaces import StartTimes, Student
from freeflow_core.network_file import load_network, save_network
from freeflow_core.objective_kit.options import GuidanceRange
from freeflow_core.plugin import Registry
from freeflow_core.weights.hub import hub_folder, is_hub_name

STUDENT_NAME = "student.safetensors"
CODEC_FILES = "codec_files"
"""Key of the metadata: options of the codec that are paths beside the file, which travel with it."""


@dataclass(frozen=True)
class StudentFile:
    """A student and what its file says of it: the teacher and codec it belongs to."""

    student: Student
    teacher: ComponentChoice | None
    codec: ComponentChoice
    metadata: dict[str, Any]
    folder: Path | None = None  # where the file lies

    @property
    def guidance(self) -> float:
        """The guidance weight it was scored with after training; 1, none, where its file does not say."""
        return float(self.metadata.get("guidance_weight", 1.0))

    @property
    def trained_guidance(self) -> tuple[float, float] | None:
        """The least and the greatest guidance weight it was trained with; None where its file does not say."""
        found = self.metadata.get("guidance_trained")
        return (float(found[0]), float(found[1])) if found else None


def save_student(path: Path, config: RunConfig, student: Student, images: int) -> None:
    """Write the student. Raises ``CheckpointError`` when that fails; nothing half-written stays."""
    options = config.objective.options
    trained = [options.guidance_min, options.guidance_max] if isinstance(options, GuidanceRange) else None
    metadata = {
        "component": config.student.name,
        "start_times": student.start_times.value,
        "objective": config.objective.name,
        "teacher": config.teacher.model_dump(mode="json") if config.teacher else None,
        "codec": config.codec.model_dump(mode="json"),
        "guidance_weight": config.evaluation.guidance_weight,
        "guidance_trained": trained,
        "images": images,
        "seed": config.seed,
        "freeflow_version": __version__,
    }
    save_network(path, student.network_state(), metadata)


def load_student(name: str | Path, registry: Registry, options: Mapping[str, Any] | None = None) -> StudentFile:
    """A trained student: from its file, a run's folder, or published weights by the name of their component.

    Args:
        name: a path, ``hf:owner/name[@revision]`` on the Hugging Face hub, or a student component that brings weights
            of its own, such as ``freeflow-xl-2-256``.
        options: of that component.

    Raises:
        CheckpointError: missing, damaged, not a student, or of a plugin that is not installed.
        DownloadError: it cannot be had from the hub.
        ConfigError: a component without weights of its own; options for a file.
    """
    path = hub_folder(str(name), (STUDENT_NAME, "codec/*")) if is_hub_name(name) else Path(name)
    if not path.exists() and str(name) in registry.components("student"):
        return _published_student(str(name), registry, dict(options or {}))
    if options:
        raise ConfigError(
            f"{path} is a file, which has no options, but student.{next(iter(options))} was set. Options go with a "
            "student's name, such as --student freeflow --set student.checkpoint=PATH."
        )
    if path.is_dir():
        path = path / STUDENT_NAME
    if not path.is_file():
        raise CheckpointError(
            f"There is no student file {path}. Expected the folder of a finished run, the student.safetensors in it, "
            "the name of a published student (`freeflow plugins list --kind student`), or hf:OWNER/NAME on the hub."
        )
    state, metadata = load_network(path)
    component = metadata.get("component")
    if not isinstance(component, str):
        raise CheckpointError(f"{path} holds a network but does not say which student it is; expected a student file.")
    if component not in registry.components("student"):
        raise CheckpointError(f"{path} holds a student of kind {component!r}, which no installed plugin provides.")
    target = registry.component("student", component).load_target()
    student = target.restore(state, Builder(registry, torch.device("cpu"), seed=0).context())
    if not isinstance(student, Student):
        raise PluginError(f"The student {component!r} was rebuilt as a {type(student).__name__}, not a Student.")
    student.start_times = StartTimes(metadata.get("start_times", StartTimes.ANY.value))
    teacher, codec = metadata.get("teacher"), metadata.get("codec", "pixels")
    if beside := metadata.get(CODEC_FILES):
        codec = codec | {option: str((path.parent / codec[option]).absolute()) for option in beside}
    return StudentFile(
        student.eval(),
        ComponentChoice.model_validate(teacher) if teacher else None,
        ComponentChoice.model_validate(codec),
        metadata,
        path.parent,
    )


def _published_student(name: str, registry: Registry, options: dict[str, Any]) -> StudentFile:
    builder = Builder(registry, torch.device("cpu"), seed=0)
    student: Student = builder.build("student", ComponentChoice(name=name, options=options))
    if not student.provenance:
        raise ConfigError(
            f"The student {name!r} is a network to be trained: it brings no weights. Name the folder of a run, a "
            "student file, or a published student."
        )
    codec = ComponentChoice(name=student.codec or "pixels")
    return StudentFile(student.eval(), None, codec, {"component": name})
