"""A network trained from data, looked at as the velocity field it has become."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError, PluginError
from freeflow_core.interfaces import AverageVelocityStudent, BuildContext, Teacher
from freeflow_core.types import Condition, Draws


@final
class VelocityOfStudent(Teacher):
    """v(x, t, c) = u(x, t, t, c) of a student, so that `freeflow pretrain` is scored like any teacher.

    The null condition is the label after the last class, as in training with label dropout.
    """

    def __init__(self, student: AverageVelocityStudent) -> None:
        super().__init__()
        self.student = student
        self.sample_shape = student.sample_shape
        self.num_classes = student.num_classes

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        raise PluginError("VelocityOfStudent wraps a student in hand; it is not a component.")

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        output = self.student(x_t, t, t, condition, None)
        return self.student.average_velocity(output, x_t, t, t)

    def null_condition(self, condition: Condition) -> Condition:
        if not isinstance(condition, Tensor) or self.num_classes is None:
            raise ConfigError("This network has no classes, so it cannot be guided; use guidance_weight=1.")
        return torch.full_like(condition, self.num_classes)

    def sample_condition(self, draws: Draws) -> Condition:
        return draws.integers("label", self.num_classes) if self.num_classes else None

    def balanced_condition(self, index: Tensor) -> Condition:
        return index % self.num_classes if self.num_classes else None
