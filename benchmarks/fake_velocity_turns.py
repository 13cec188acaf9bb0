"""FreeFlow whose fake velocity is updated several times to an update of the student: a plugin for measurements alone.

The student's samples in between are thrown away, so that a step costs as much as any; what is asked is whether a better
fake velocity would help, not what it would cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from freeflow_predictor_corrector.config import FreeFlowConfig
from freeflow_predictor_corrector.freeflow import FreeFlow
from pydantic import Field

from freeflow_core.interfaces.objective import Context, Models, Objective, Role
from freeflow_core.interfaces.student import AverageVelocityStudent, StartTimes, Student
from freeflow_core.interfaces.teacher import Teacher
from freeflow_core.plugin import Component, hookimpl
from freeflow_core.types import Batch, Draws, Losses, Progress


class FreeFlowInTurnsConfig(FreeFlowConfig):
    """FreeFlow's, and how often the fake velocity is updated."""

    fake_velocity_updates: int = Field(2, ge=1, description="Steps to a turn of the student, which is the last one.")


@final
class FreeFlowInTurns(Objective):
    """FreeFlow with the student's loss left out of the steps that are the fake velocity's alone."""

    requires = AverageVelocityStudent
    start_times = StartTimes.PRIOR
    uses_batch_means = True

    def __init__(self, config: FreeFlowInTurnsConfig) -> None:
        self._updates, self._freeflow = config.fake_velocity_updates, FreeFlow(config)

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        return self._freeflow.roles(student, teacher)

    def losses(self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context) -> Losses:
        losses = self._freeflow.losses(models, batch, draws, progress, context)
        if (progress.step + 1) % self._updates:
            del losses["student"]
        return losses


@hookimpl
def freeflow_objectives() -> Iterable[Component]:
    """The one."""
    return [Component("freeflow-in-turns", ":FreeFlowInTurns", ":FreeFlowInTurnsConfig")]
