"""From configuration to objects, each checked against the interface of its kind."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch

from freeflow_core import interfaces
from freeflow_core.config import ComponentChoice, RunConfig
from freeflow_core.config.load import resolve_choice
from freeflow_core.engine.process import Crew
from freeflow_core.errors import ConfigError, PluginError
from freeflow_core.interfaces import BuildContext, Codec, Objective, Source, Student, Teacher
from freeflow_core.plugin import Registry
from freeflow_core.types import LoadReport
from freeflow_core.weights import weights_by_name

_log = logging.getLogger("freeflow")
INTERFACES: dict[str, type[Any]] = {
    "teacher": interfaces.Teacher,
    "student": interfaces.Student,
    "objective": interfaces.Objective,
    "sampler": interfaces.Sampler,
    "codec": interfaces.Codec,
    "source": interfaces.Source,
    "evaluator": interfaces.Evaluator,
    "tracker": interfaces.Tracker,
    "verifier": interfaces.Verifier,
    "distance": interfaces.Distance,
}
"""The class that a component of each kind is an instance of."""
DTYPES = {"float32": torch.float32, "bf16": torch.float32, "float64": torch.float64}
"""Precision of the weights; bf16 is autocast over float32 weights."""


@final
class Builder:
    """Builds components by kind and name.

    Args:
        weights: where published weights lie, by name; None: in the cache, fetched on first use.
        crew: the processes that sample together; None: this one alone.

    Raises:
        PluginError: a component is not what its kind promises, or its constructor broke.
    """

    def __init__(
        self,
        registry: Registry,
        device: torch.device,
        seed: int,
        precision: str = "float32",
        weights: Callable[[str], Path] | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.crew = crew or Crew()
        self.registry = registry
        self.device = device
        self.seed = seed
        self.precision = precision
        self._weights = weights_by_name(registry) if weights is None else weights

    def build(
        self,
        kind: str,
        choice: ComponentChoice,
        *,
        teacher: Teacher | None = None,
        source: Source | None = None,
        codec: Codec | None = None,
    ) -> Any:
        """One component, with what it may know of its surroundings."""
        resolved = resolve_choice(self.registry, kind, choice, kind)
        target = self.registry.component(kind, choice.name).load_target()
        built = target.from_config(resolved.options, self.context(teacher, source, codec))
        expected = INTERFACES.get(kind)
        if expected is not None and not isinstance(built, expected):
            plugin = self.registry.origin(kind, choice.name)
            raise PluginError(
                f"The {kind} {choice.name!r} of plugin {plugin.name!r} ({plugin.distribution}) built a "
                f"{type(built).__name__}, which is not a freeflow_core.interfaces.{expected.__name__}."
            )
        if isinstance(built, Teacher):
            built.component = resolved
        return built

    def context(
        self, teacher: Teacher | None = None, source: Source | None = None, codec: Codec | None = None
    ) -> BuildContext:
        """What a component built here may know of its surroundings."""

        def nested(kind: str, name: str, options: dict[str, Any]) -> Any:
            choice = ComponentChoice(name=name, options=options)
            return self.build(kind, choice, teacher=teacher, source=source, codec=codec)

        return BuildContext(
            self.device,
            self.seed,
            nested,
            teacher,
            source,
            self.precision,
            weights=self._weights,
            trusted=self.registry.manager.trusted,
            codec=codec,
        )

    def teacher(self, choice: ComponentChoice, source: Source | None = None) -> Teacher:
        teacher: Teacher = self.build("teacher", choice, source=source)
        if teacher.provenance and self.device.type != "meta":
            _log.info(f"Teacher: {teacher.provenance}.")
        return teacher.to(self.device).eval().requires_grad_(False)


@dataclass(frozen=True)
class Components:
    """Everything a run trains with, on its device and in its precision.

    ``origins``: the plugins of the teacher and the student, in words, by kind.
    """

    teacher: Teacher | None
    student: Student
    objective: Objective
    source: Source
    reference: Source | None
    codec: Codec
    load_report: LoadReport
    origins: Mapping[str, str] = field(default_factory=dict)


def build_components(builder: Builder, config: RunConfig) -> Components:
    """Build and check that the parts fit each other.

    Raises:
        ConfigError: an objective without the data, the teacher or the kind of student it needs; classes that differ.
    """
    torch.manual_seed(config.seed)
    dtype = DTYPES[config.runtime.precision]
    source: Source = builder.build("source", config.source)
    reference = builder.build("source", config.reference) if config.reference else None
    teacher: Teacher | None = None
    if config.teacher is not None:
        teacher = builder.teacher(config.teacher, source).to(dtype)
    codec: Codec = builder.build("codec", config.codec, teacher=teacher, source=source)
    objective: Objective = builder.build("objective", config.objective, teacher=teacher, source=source, codec=codec)
    _check_needs(config, objective, source, teacher)
    student: Student = builder.build("student", config.student, teacher=teacher, source=source)
    _check_fit(config, objective, student, teacher, source)
    student.start_times = objective.start_times
    report = student.load_teacher(teacher) if teacher is not None else LoadReport()
    student = student.to(device=builder.device, dtype=dtype)
    _check_states(config, student, source, reference, codec)
    if teacher is not None and teacher.codec not in (None, config.codec.name):
        _log.warning(
            f"The teacher {config.teacher.name if config.teacher else ''!r} works on states of the codec "
            f"{teacher.codec!r}, but the run decodes with {config.codec.name!r}: pictures and scores will be of raw "
            f"states. Set codec={teacher.codec}."
        )
    named = {"teacher": config.teacher, "student": config.student}
    origins = {kind: str(builder.registry.origin(kind, choice.name)) for kind, choice in named.items() if choice}
    return Components(teacher, student, objective, source, reference, codec, report, origins)


def _check_needs(config: RunConfig, objective: Objective, source: Source, teacher: Teacher | None) -> None:
    name = config.objective.name
    if objective.needs_data and not source.has_data:
        raise ConfigError(
            f"The objective {name!r} trains on data, but the source {config.source.name!r} yields none. "
            f"{_advice(teacher)}"
        )
    if not objective.needs_data and source.has_data:
        raise ConfigError(
            f"The objective {name!r} is data-free, but the source {config.source.name!r} yields data it would never "
            "see. Remove it (--set source=prior); held-out data to compare with is the setting `reference`."
        )
    if objective.needs_teacher and teacher is None:
        raise ConfigError(f"The objective {name!r} needs a teacher. Choose one with --teacher NAME.")


def _advice(teacher: Teacher | None) -> str:
    """Which source to choose."""
    if teacher is None:
        return "Choose one with --source NAME; `freeflow plugins list --kind source` shows them."
    states = f"The teacher works on states of shape {tuple(teacher.sample_shape)}"
    if teacher.codec is None:
        return f"{states}: choose such a source with --source NAME; `freeflow plugins list --kind source` shows them."
    return (
        f"{states}, made of images by the codec {teacher.codec!r}: choose images of yours with --source image-folder "
        f"--set source.path=FOLDER --set codec={teacher.codec}, or encode them once with `freeflow encode` and choose "
        "--source latents."
    )


def _check_fit(
    config: RunConfig, objective: Objective, student: Student, teacher: Teacher | None, source: Source
) -> None:
    if not isinstance(student, objective.requires):
        raise ConfigError(
            f"The objective {config.objective.name!r} trains a {objective.requires.__name__}, but the student "
            f"{config.student.name!r} is a {type(student).__name__}."
        )
    if teacher is not None and tuple(student.sample_shape) != tuple(teacher.sample_shape):
        raise ConfigError(
            f"The student {config.student.name!r} works on states of shape {tuple(student.sample_shape)}, the teacher "
            f"{config.teacher.name if config.teacher else ''!r} on {tuple(teacher.sample_shape)}."
        )
    if teacher is not None and source.has_data and source.num_classes != teacher.num_classes:
        raise ConfigError(
            f"The source {config.source.name!r} has {source.num_classes or 'no'} classes, the teacher "
            f"{config.teacher.name if config.teacher else ''!r} {teacher.num_classes or 'none'}. Choose a source with "
            "the teacher's classes (give it labels where it can take them), or another teacher."
        )


def _check_states(config: RunConfig, student: Student, source: Source, reference: Source | None, codec: Codec) -> None:
    """Whether images, codec and student fit, as far as shapes are known before the first batch."""
    if source.encoded_by is not None and source.encoded_by != config.codec.name:
        raise ConfigError(
            f"The states of the source {config.source.name!r} were made by the codec {source.encoded_by!r}, but the "
            f"run's codec is {config.codec.name!r}, which cannot turn samples back into images. Set "
            f"codec={source.encoded_by}."
        )
    if not source.has_data or source.image_shape is None:
        return
    encoded = source.encoded_by is not None
    state = tuple(source.image_shape) if encoded else codec.state_shape(source.image_shape)
    if state is not None and state != tuple(student.sample_shape):
        raise ConfigError(
            f"The source {config.source.name!r} yields states of shape {state} (through the codec "
            f"{config.codec.name!r}), but the student {config.student.name!r} works on {tuple(student.sample_shape)}. "
            "Choose another source, codec or teacher, or set the student's sample_shape."
        )
    if encoded or reference is None or reference.image_shape in (None, source.image_shape):
        return
    raise ConfigError(
        f"The reference {config.reference.name if config.reference else ''!r} has images of shape "
        f"{reference.image_shape}, the source {config.source.name!r} of {source.image_shape}: nothing could be "
        f"compared. Set reference={config.source.name}, or reference=null."
    )
