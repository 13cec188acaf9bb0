"""The trainable flow map."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import Self

from torch import Tensor, nn

from freeflow_core.interfaces.build import Buildable
from freeflow_core.interfaces.teacher import Teacher
from freeflow_core.types import Condition, LoadReport, NetworkState


class StartTimes(str, Enum):
    """From which times a student has learnt to jump."""

    PRIOR = "prior"
    """From t = 1 alone: it has no few-step mode, and few-step samplers refuse it."""
    ANY = "any"


class Student(nn.Module, Buildable):
    """A network that jumps from time t to time s <= t.

    ``forward`` is the network's raw output and the only method a gradient pass may call: distributed wrappers
    intercept it and nothing else. Everything else is a pure function of that output.

    Attributes:
        sample_shape: dimensions ``*D`` of one state.
        num_classes: number of classes, or None.
        start_times: set by the objective that trained it; stored with the weights.
    """

    sample_shape: tuple[int, ...]
    num_classes: int | None = None
    start_times: StartTimes = StartTimes.ANY

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        """Raw output for states ``x_t`` (N, *D), times ``t`` and ``s`` (N,), and guidance weights (N,) or None."""

    @abstractmethod
    def jump(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_s (N, *D) as a pure function of ``forward``'s output."""

    @abstractmethod
    def load_teacher(self, teacher: Teacher) -> LoadReport:
        """Start from the teacher's weights; say which were taken, which are new, which were left."""

    @abstractmethod
    def network_state(self) -> NetworkState:
        """The network as data, for checkpoints and exports."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: NetworkState) -> Self:
        """Rebuild what ``network_state`` gave, weights included. Raises ``CheckpointError`` when it does not fit."""

    def flow_map(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        """X(x_t, t, s): (N, *D)."""
        return self.jump(self(x_t, t, s, condition, guidance), x_t, t, s)


class AverageVelocityStudent(Student):
    """A student that predicts the average velocity u over [s, t], so that x_s = x_t - (t - s) u."""

    @abstractmethod
    def average_velocity(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """u (N, *D) as a pure function of ``forward``'s output."""


class Policy(ABC):
    """A closed-form velocity field over one segment (pi-Flow)."""

    @abstractmethod
    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v (N, *D) at ``x`` (N, *D) and ``t`` (N,), without a network evaluation."""


class PolicyStudent(Student):
    """A student that emits a policy, which is rolled from t to s."""

    @abstractmethod
    def policy(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Policy:
        """The policy as a pure function of ``forward``'s output."""
