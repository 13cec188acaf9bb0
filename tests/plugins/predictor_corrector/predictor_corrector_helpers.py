"""Small exact networks, fixed draws and spies for the tests of the predictor-corrector objectives."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import exact_maps
import torch
from exact_maps import PlainStudent
from objective_helpers import NUM_CLASSES, LocalContext, philox
from torch import Tensor, nn

from freeflow_core.interfaces import Model, Models, Teacher
from freeflow_core.types import Batch, Condition, Draws, Progress

__all__ = ["NUM_CLASSES", "LocalContext", "philox"]

NO_DATA = Batch(None, None)


def progress(step: int = 1, images: int = 0) -> Progress:
    return Progress(images=images, step=step, total_images=1000)


def models(student: nn.Module, teacher: Teacher, fake: nn.Module | None = None) -> Models:
    roles = {"student": Model(student, student)}
    if fake is not None:
        roles["fake_velocity"] = Model(fake, fake)
    return Models(roles, teacher)


def losses(objective: Any, networks: Models, draws: Draws, *, at: Progress | None = None) -> dict[str, Any]:
    return dict(objective.losses(networks, NO_DATA, draws, at or progress(), LocalContext()))


class FixedDraws(Draws):
    """Given values by stream: uniforms (N,), noise (N, *D)."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values = dict(values)
        rows = len(next(iter(values.values())))
        self.index = self.position = torch.arange(rows)
        self.batch_size, self.device, self.dtype = rows, torch.device("cpu"), torch.float64

    def noise(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        return self.values[stream].reshape(-1, *shape)

    def uniform(self, stream: str) -> Tensor:
        return self.values.get(stream, torch.full((len(self.index),), 0.5, dtype=torch.float64))

    def normal(self, stream: str) -> Tensor:
        raise NotImplementedError

    def integers(self, stream: str, high: int) -> Tensor:
        raise NotImplementedError

    def split(self, share: float) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def rows(self, rows: Tensor) -> FixedDraws:
        return FixedDraws({name: value[rows] for name, value in self.values.items()})


class ClassTeacher(exact_maps.ClassTeacher):
    """In the plane. Says what it was asked."""

    def __init__(self) -> None:
        super().__init__(dims=2)

    @property
    def rows_of_calls(self) -> list[int]:
        return self.calls

    @property
    def weights(self) -> list[Tensor]:
        return [weight for _, weight in self.asked]

    @property
    def times(self) -> list[Tensor]:
        return [t for t, _ in self.asked]


class GuidedExactStudent(PlainStudent):
    """The exact map from t = 1 of a guided ``ClassTeacher``: x_s = std_c(s)^g std_null(s)^(1-g) z."""

    def __init__(self, teacher: ClassTeacher) -> None:
        super().__init__()
        self.std = nn.Parameter(teacher.std.detach().clone())
        self.sample_shape = teacher.sample_shape

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        assert isinstance(condition, Tensor)
        assert guidance is not None
        d = (1 - s)[:, None]

        def log_spread(std: Tensor) -> Tensor:
            return 0.5 * torch.log1p(d.square() * (1 + std.square()) - 2 * d)

        g = guidance[:, None]
        exponent = g * log_spread(self.std[condition][:, None]) + (1 - g) * log_spread(self.std[-1])
        return -torch.expm1(exponent) / d * x_t


class SmallStudent(PlainStudent):
    """A smooth perceptron of (x_t, t, s, guidance), and of the label when there is one. Records every s it sees."""

    def __init__(self, dims: int = 2, width: int = 32, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.sample_shape = (dims,)
        self.net = nn.Sequential(
            nn.Linear(dims + 3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, dims)
        ).to(dtype)
        self.label = nn.Embedding(NUM_CLASSES, dims + 3).to(dtype)
        self.seen: list[Tensor] = []

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        assert guidance is not None
        assert t.dtype == s.dtype == guidance.dtype == x_t.dtype
        self.seen.append(s.detach())
        h = torch.cat([x_t, torch.stack([t, s, guidance], 1)], 1)
        return self.net(h if condition is None else h + self.label(condition))


class Spy(nn.Module):
    """Counts the calls of a network, their rows, and whether gradients were on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.rows: list[int] = []
        self.gradient: list[bool] = []

    def forward(self, *arguments: Any) -> Any:
        self.rows.append(len(arguments[0]))
        self.gradient.append(torch.is_grad_enabled())
        return self.network(*arguments)


class BareSpy(Spy):
    """A spy that also passes on ``average_velocity``."""

    def average_velocity(self, *arguments: Any) -> Tensor:
        return self.network.average_velocity(*arguments)


def gradients(loss: Tensor, network: nn.Module) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def copy_of(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network)
