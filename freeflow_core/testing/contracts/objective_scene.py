"""A tiny run for an objective to be looked at in: networks of a few weights on a mixture in the plane."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from freeflow_core.config import RunConfig
from freeflow_core.config.load import resolve
from freeflow_core.engine.build import Components, build_components
from freeflow_core.engine.state import TrainingState, build_state
from freeflow_core.engine.trainer import MicroBatch, Trainer
from freeflow_core.errors import FreeflowError
from freeflow_core.interfaces import Context, Model, Models, Objective, PolicyStudent, Student
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.testing.contracts.base import WithTeacher
from freeflow_core.testing.exact import GaussianTeacher
from freeflow_core.tools.cost.step import PlannedProcess
from freeflow_core.types import Batch, Loss, Progress

ROWS = 16
_STEPS = 64
_CYCLE = 8
_DIGITS = "digits"


class LocalContext(Context):
    """Means over the rows at hand."""

    def mean(self, values: Tensor) -> Tensor:
        return values.detach().mean()


@dataclass(frozen=True)
class Scene:
    """A run that is about to take its first step, with an objective that has its data, teacher and student."""

    config: RunConfig
    components: Components
    state: TrainingState
    trainer: Trainer

    @property
    def models(self) -> Models:
        """The roles as the objective sees them."""
        return self.state.models(self.components)

    def networks(self) -> dict[str, nn.Module]:
        """The roles' networks and the teacher."""
        found: dict[str, nn.Module] = {name: role.network for name, role in self.state.roles.items()}
        return found if self.components.teacher is None else found | {"teacher": self.components.teacher}

    def train(self, steps: int) -> Scene:
        """So many steps; itself."""
        for _ in range(steps):
            self.trainer.step()
        return self

    def micro_batch(self) -> MicroBatch:
        """The rows of the first step."""
        return self.trainer.peek()

    def losses(self, micro: MicroBatch | None = None) -> dict[str, Loss]:
        """The objective's losses of one micro-batch, means being those of its own rows."""
        micro = self.micro_batch() if micro is None else micro
        progress = self.trainer.progress
        return dict(self.components.objective.losses(self.models, micro.batch, micro.draws, progress, LocalContext()))


class ObjectiveScenes(WithTeacher):
    """How the contract of an objective sets up runs.

    Attributes:
        student: name of a student it can train; None: a tiny one of the class it requires.
        student_options: that student's options.
        source: the data of an objective that needs some; None: exact samples of the default teacher.
        source_options: that source's options.
        codec: the codec between source and student.
    """

    kind: ClassVar[str] = "objective"
    student: ClassVar[str | None] = None
    student_options: ClassVar[Mapping[str, Any]] = {}
    source: ClassVar[str | None] = None
    source_options: ClassVar[Mapping[str, Any]] = {}
    codec: ClassVar[str | None] = None

    def scene(
        self,
        *,
        accumulation: int = 1,
        precision: str = "float32",
        device: str = "cpu",
        training: Mapping[str, Any] | None = None,
    ) -> Scene:
        """A run of the objective with a teacher and student that fit it, ready for its first step."""
        refusals: list[FreeflowError] = []
        for teacher in self.teachers():
            try:
                config = self.run_config(teacher, accumulation, precision, training or {})
                process = cast(Accelerator, PlannedProcess(1, torch.device(device)))
                components = build_components(self.builder(device, precision), config)
                state = build_state(config, components, process)
                return Scene(config, components, state, Trainer(config, components, state, process))
            except FreeflowError as error:
                refusals.append(error)
        raise refusals[0]

    def run_config(
        self, teacher: tuple[str, Mapping[str, Any]], accumulation: int, precision: str, training: Mapping[str, Any]
    ) -> RunConfig:
        """The configuration of that run."""
        objective = self.objective(teacher=teacher)
        name, options = teacher
        digits = name == _DIGITS
        source: Mapping[str, Any] = {"name": "prior"}
        if objective.needs_data:
            data = {"name": _DIGITS} if digits else {"name": "gaussian-mixture", **options}
            source = data if self.source is None else {"name": self.source, **self.source_options}
        values = {
            "name": "contract",
            "teacher": {"name": name, **options} if objective.needs_teacher else None,
            "student": self.student_choice(objective, options, objective.needs_teacher),
            "objective": {"name": self.component, **self.options},
            "source": source,
            "codec": self.codec or ("pixels" if digits or self.source is not None else "states"),
            "training": {
                "images": _STEPS * ROWS,
                "batch_size": ROWS,
                "accumulation": accumulation,
                "optimizer": {"learning_rate": 1e-3},
                **training,
            },
            "runtime": {"precision": precision, "device": "cpu"},
            "evaluation": {"enabled": False},
        }
        return resolve(self._registry(), values)

    def student_choice(
        self, objective: Objective, teacher_options: Mapping[str, Any], has_teacher: bool
    ) -> dict[str, Any]:
        """The student by name with its options."""
        if self.student is not None:
            return {"name": self.student, **self.student_options}
        policy = issubclass(objective.requires, PolicyStudent)
        choice: dict[str, Any] = {"name": "mlp-policy" if policy else "mlp", "width": 16, "depth": 1}
        if policy:
            choice["num_substeps"] = 8
        if not has_teacher:
            choice |= {"sample_shape": [2], "num_classes": teacher_options.get("num_classes")}
        return choice

    def objective(
        self, *, teacher: tuple[str, Mapping[str, Any]] | None = None, precision: str = "float32"
    ) -> Objective:
        """The objective by itself."""
        chosen = self.teachers()[0] if teacher is None else teacher
        built: Objective = self.builder(precision=precision).build(
            "objective", self._choice(), teacher=self.build_teacher(chosen)
        )
        return built


def exact_losses(
    objective: Objective, teacher: GaussianTeacher, student: Student, rows: int, first: int
) -> dict[str, Loss]:
    """Losses in float64 on samples ``first`` ... of the exact Gaussian, with the roles the objective asks for.

    Role networks are copies of what the objective gives, in float64.
    """
    draws = PhiloxDraws(11, torch.arange(first, first + rows), dtype=torch.float64)
    x = teacher.mean + teacher.std * draws.noise("exact-data", teacher.sample_shape)
    models = {"student": Model(student, student)}
    for name, role in objective.roles(student, teacher).items():
        network = copy.deepcopy(role.network).double().requires_grad_(role.trainable)
        models[name] = Model(network, network)
    batch = Batch(x if objective.needs_data else None, None)
    for step in range(_CYCLE):  # the student may be updated less often than another role
        progress = Progress(images=500, step=step, total_images=1_000, updates=dict.fromkeys(models, step))
        losses = dict(objective.losses(Models(models, teacher), batch, draws, progress, LocalContext()))
        if "student" in losses:
            break
    return losses
