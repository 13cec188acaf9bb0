"""Exact networks, spies and draws for the objectives that roll, pair, halve or match distributions."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import BuildContext, Context, Model, Models, PolicyStudent, Teacher
from freeflow_core.math.flow import expand_times
from freeflow_core.math.policies import GMPolicy, Policy
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.testing.exact import GaussianStudent, GaussianTeacher
from freeflow_core.types import Batch, Condition, Draws, LoadReport, NetworkState, Progress

MEAN = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
STD = torch.tensor([0.4, 0.8, 1.5], dtype=torch.float64)
SPREAD = 0.6
NO_DATA = Batch(None, None)


class NoMeans(Context):
    def mean(self, values: Tensor) -> Tensor:
        raise AssertionError("these objectives use no batch means")


def build(objective: type[Any], config: type[Any], **options: Any) -> Any:
    """The objective as the engine builds it."""
    context = BuildContext(torch.device("cpu"), 0, lambda *_: None)
    return objective.from_config(config(**options), context)


def philox(num: int, start: int = 0, seed: int = 3, dtype: torch.dtype = torch.float64) -> PhiloxDraws:
    return PhiloxDraws(seed, torch.arange(start, start + num), dtype=dtype)


def progress(step: int = 0, images: int = 0, total: int = 1000) -> Progress:
    return Progress(images, step, total)


def losses(objective: Any, models: Models, draws: Draws, batch: Batch = NO_DATA, step: int = 0) -> dict[str, Any]:
    return dict(objective.losses(models, batch, draws, progress(step), NoMeans()))


def gaussian_data(num: int, start: int = 0, mean: Tensor = MEAN, std: Tensor = STD) -> Tensor:
    draws = PhiloxDraws(12, torch.arange(start, start + num), dtype=torch.float64)
    return mean + std * draws.noise("data", tuple(mean.shape))


def teacher_and_student(**changes: Tensor) -> tuple[GaussianTeacher, GaussianStudent]:
    """The exact student of the teacher, its parameters replaced by ``changes``."""
    return GaussianTeacher(MEAN, STD), GaussianStudent(changes.get("mean", MEAN), changes.get("std", STD))


class Spy(nn.Module):
    """Stands for a distributed wrapper. Notes what it is asked, and whether with gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[tuple[Any, ...]] = []
        self.gradient: list[bool] = []

    def forward(self, *arguments: Any) -> Any:
        self.calls.append(tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments))
        self.gradient.append(torch.is_grad_enabled())
        return self.network(*arguments)


class BareSpy(Spy):
    """A spy that is a student, too: other attributes and methods are the network's."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)


class TeacherSpy(Teacher):
    """A teacher that notes what it is asked; ``sign`` -1 answers wrongly, ``num_classes`` lets it be guided."""

    def __init__(self, teacher: Teacher, sign: float = 1.0, num_classes: int | None = None) -> None:
        super().__init__()
        self.teacher = teacher
        self.sign = sign
        self.sample_shape = teacher.sample_shape
        self.num_classes = num_classes
        self.calls: list[tuple[Tensor, Tensor, Condition, Tensor]] = []

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        raise NotImplementedError

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.sign * self.teacher.velocity(x_t, t, None)

    def guided_velocity(self, x_t: Tensor, t: Tensor, condition: Condition, weight: Tensor) -> Tensor:
        assert not x_t.requires_grad
        self.calls.append((x_t, t, condition, weight))
        return self.velocity(x_t, t, condition)

    def null_condition(self, condition: Condition) -> Condition:
        assert isinstance(condition, Tensor)
        return torch.full_like(condition, self.num_classes or 0)

    def sample_condition(self, draws: Draws) -> Condition:
        return None if self.num_classes is None else draws.integers("label", self.num_classes)

    def balanced_condition(self, index: Tensor) -> Condition:
        return None if self.num_classes is None else index % self.num_classes


def spied(teacher: Teacher | None, student: Any, **roles: Any) -> tuple[Models, Spy, BareSpy]:
    """Models whose student is watched: the wrapped network, and the bare one."""
    wrapped, bare = Spy(student), BareSpy(student)
    models = {"student": Model(wrapped, bare), **{name: Model(role, role) for name, role in roles.items()}}
    return Models(models, teacher), wrapped, bare


class ExactPolicyStudent(PolicyStudent):
    """The exact policy of isotropic Gaussian data N(MEAN, SPREAD^2), its velocities times ``scale`` (trainable)."""

    def __init__(self, scale: float = 1.0, num_substeps: int = 16) -> None:
        super().__init__()
        self.sample_shape = tuple(MEAN.shape)
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.num_substeps = num_substeps

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        time = expand_times(t, x_t)
        total = (1 - time).square() * SPREAD**2 + time.square()
        posterior = MEAN + (1 - time) * SPREAD**2 / total * (x_t - (1 - time) * MEAN)
        return torch.cat([self.scale * (x_t - posterior) / time, 0.5 * (SPREAD**2 / total).log()], 1)

    def policy(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Policy:
        return GMPolicy(output[:, None, :-1], torch.zeros(len(x_t), 1, 1, dtype=output.dtype), output[:, -1], x_t, t)

    def load_teacher(self, teacher: Teacher) -> LoadReport:
        raise NotImplementedError

    def network_state(self) -> NetworkState:
        raise NotImplementedError

    @classmethod
    def from_state(cls, state: NetworkState) -> Self:
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        raise NotImplementedError
