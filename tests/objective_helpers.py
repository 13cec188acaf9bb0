"""Exact maps, given draws and spies for the tests of objectives. One process, one micro-batch, float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher
from torch import Tensor, nn

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import AverageVelocityStudent, BuildContext, Context, Model, Models, Objective, Teacher
from freeflow_core.math.flow import average_velocity_jump, expand_times
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Batch, Condition, Draws, LoadReport, Loss, NetworkState, Progress

NUM_CLASSES = 2


class LocalContext(Context):
    """Means over the rows at hand."""

    def mean(self, values: Tensor) -> Tensor:
        return values.detach().mean()


class GivenDraws(Draws):
    """Philox draws, with some streams given: uniforms (N,), noise (N, *D), integers (N,)."""

    def __init__(self, rows: int, given: Mapping[str, Tensor] | None = None, seed: int = 3, dtype: Any = torch.float64):
        self._philox = PhiloxDraws(seed, torch.arange(rows), dtype=dtype)
        self._given = dict(given or {})
        self.index, self.position, self.batch_size = torch.arange(rows), torch.arange(rows), rows
        self.device, self.dtype = torch.device("cpu"), dtype

    def noise(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        return self._given[stream] if stream in self._given else self._philox.noise(stream, shape)

    def uniform(self, stream: str) -> Tensor:
        return self._given[stream] if stream in self._given else self._philox.uniform(stream)

    def normal(self, stream: str) -> Tensor:
        return self._philox.normal(stream)

    def integers(self, stream: str, high: int) -> Tensor:
        return self._given[stream] if stream in self._given else self._philox.integers(stream, high)

    def split(self, share: float) -> tuple[Tensor, Tensor]:
        return self._philox.split(share)

    def rows(self, rows: Tensor) -> Draws:
        part = GivenDraws(len(rows), {name: value[rows] for name, value in self._given.items()})
        part._philox = self._philox.rows(rows)
        return part


def progress(images: int = 500, step: int = 5) -> Progress:
    return Progress(images=images, step=step, total_images=1000)


def models(student: nn.Module, teacher: Teacher | None = None, **roles: nn.Module) -> Models:
    return Models({name: Model(net, net) for name, net in {"student": student, **roles}.items()}, teacher)


def roles_of(objective: Objective, student: Any, teacher: Teacher | None) -> dict[str, nn.Module]:
    """The networks an objective asks for, as the engine would hold them, in the student's precision."""
    dtype = next(student.parameters()).dtype
    return {name: role.network.to(dtype) for name, role in objective.roles(student, teacher).items()}


def losses(
    objective: Objective,
    student: nn.Module,
    teacher: Teacher | None,
    draws: Draws,
    x: Tensor | None = None,
    condition: Condition = None,
    at: Progress | None = None,
) -> dict[str, Loss]:
    found = models(student, teacher, **roles_of(objective, student, teacher))
    return dict(objective.losses(found, Batch(x, condition), draws, at or progress(), LocalContext()))


def build(target: type[Objective], config: ComponentConfig, precision: str = "float64") -> Any:
    return target.from_config(config, BuildContext(torch.device("cpu"), 0, lambda *_: None, precision=precision))


# -- A Gaussian with full covariance: the exact map is linear, so every identity holds to rounding. --------------------


def gaussian_teacher(dims: int = 6, seed: int = 0, sign: float = 1.0) -> Teacher:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dims, dims, dtype=torch.float64, generator=generator)
    covariance = root @ root.T / dims + 0.1 * torch.eye(dims, dtype=torch.float64)
    mean = torch.randn(1, dims, dtype=torch.float64, generator=generator)
    teacher: Teacher = GaussianMixtureTeacher(mean, covariances=covariance.unsqueeze(0))
    return teacher if sign == 1 else Negated(teacher)


class _Component:
    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        raise NotImplementedError


class Negated(_Component, Teacher):
    """The teacher with the wrong sign: what a port from t = 0 noise gets wrong."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher
        self.sample_shape, self.num_classes = teacher.sample_shape, teacher.num_classes

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return -self.teacher.velocity(x_t, t, condition)

    def null_condition(self, condition: Condition) -> Condition:
        return self.teacher.null_condition(condition)

    def sample_condition(self, draws: Draws) -> Condition:
        return self.teacher.sample_condition(draws)

    def balanced_condition(self, index: Tensor) -> Condition:
        return self.teacher.balanced_condition(index)


class _Student(_Component, AverageVelocityStudent):
    def average_velocity(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return output

    def jump(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return average_velocity_jump(x_t, output, t, s)

    def load_teacher(self, teacher: Teacher) -> LoadReport:
        return LoadReport()

    def network_state(self) -> NetworkState:
        raise NotImplementedError

    @classmethod
    def from_state(cls, state: NetworkState) -> Self:
        raise NotImplementedError


class ExactGaussianStudent(_Student):
    """u of :func:`gaussian_teacher`, without a difference that cancels; ``scale`` is its one parameter, exact at 1."""

    def __init__(self, teacher: Teacher, scale: float = 1.0) -> None:
        super().__init__()
        mixture = teacher.teacher if isinstance(teacher, Negated) else teacher
        assert isinstance(mixture, GaussianMixtureTeacher)
        assert mixture.basis is not None
        self.sample_shape = teacher.sample_shape
        self.register_buffer("mean", mixture.means[0].clone())
        self.register_buffer("variance", mixture.variances[0].clone())
        self.register_buffer("basis", mixture.basis[0].clone())
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        t, s = expand_times(t, x_t), expand_times(s, x_t)
        mean, variance, basis = self.mean.to(x_t), self.variance.to(x_t), self.basis.to(x_t)
        spread_t = ((1 - t).square() * variance + t.square()).sqrt()
        spread_s = ((1 - s).square() * variance + s.square()).sqrt()
        slope = (t + s - (2 - t - s) * variance) / (spread_t * (spread_t + spread_s))
        return self.scale * ((slope * ((x_t - (1 - t) * mean) @ basis)) @ basis.T - mean)


# -- Two classes and a null class with commuting covariances: the guided map is exact too. -----------------------------


class ClassTeacher(_Component, Teacher):
    """Zero-mean isotropic Gaussians: class k has std[k]; the null class is the last."""

    def __init__(self, std: tuple[float, ...] = (0.5, 0.7, 1.6), dims: int = 3) -> None:
        super().__init__()
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64))
        self.sample_shape = (dims,)
        self.num_classes = NUM_CLASSES
        self.calls: list[int] = []
        self.asked: list[tuple[Tensor, Tensor]] = []

    def slope(self, t: Tensor, labels: Tensor) -> Tensor:
        """v = slope * x, (N,)."""
        variance = self.std.to(t)[labels].square()
        return (t - (1 - t) * variance) / ((1 - t).square() * variance + t.square())

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert isinstance(condition, Tensor)
        self.calls.append(len(x_t))
        return expand_times(self.slope(t, condition), x_t) * x_t

    def guided_velocity(self, x_t: Tensor, t: Tensor, condition: Condition, weight: Tensor) -> Tensor:
        self.asked.append((t.detach().clone(), weight.clone()))
        return super().guided_velocity(x_t, t, condition, weight)

    def null_condition(self, condition: Condition) -> Condition:
        assert isinstance(condition, Tensor)
        return torch.full_like(condition, NUM_CLASSES)

    def sample_condition(self, draws: Draws) -> Condition:
        return draws.integers("labels", NUM_CLASSES)

    def balanced_condition(self, index: Tensor) -> Condition:
        return index % NUM_CLASSES

    def data(self, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Samples of the classes and their labels."""
        labels = torch.arange(rows) % NUM_CLASSES
        noise = torch.randn(
            rows, *self.sample_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        return self.std[labels].unsqueeze(1) * noise, labels


class ExactGuidedStudent(_Student):
    """The guided map of :class:`ClassTeacher`: x_s / x_t = (std_c(s) / std_c(t))^g (std_null(s) / std_null(t))^(1-g)."""

    def __init__(self, teacher: ClassTeacher, scale: float = 1.0) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(teacher)
        self.sample_shape, self.num_classes = teacher.sample_shape, NUM_CLASSES
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        assert isinstance(condition, Tensor)
        assert guidance is not None

        def log_spread(time: Tensor, labels: Tensor) -> Tensor:
            variance = self.teacher.std.to(time)[labels].square()
            return 0.5 * torch.log((1 - time).square() * variance + time.square())

        null = torch.full_like(condition, NUM_CLASSES)
        exponent = guidance * (log_spread(s, condition) - log_spread(t, condition))
        exponent = exponent + (1 - guidance) * (log_spread(s, null) - log_spread(t, null))
        slope = guidance * self.teacher.slope(t, condition) + (1 - guidance) * self.teacher.slope(t, null)
        instant = t == s
        average = -torch.expm1(exponent) / torch.where(instant, torch.ones_like(t), t - s)
        return self.scale * expand_times(torch.where(instant, slope, average), x_t) * x_t


# -- Any network at all. -----------------------------------------------------------------------------------------------


class RandomStudent(_Student):
    """A smooth random perceptron of (x_t, t, s, guidance) and of the label where there is one."""

    def __init__(
        self, dims: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64, num_classes: int | None = None
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.sample_shape, self.num_classes = (dims,), num_classes
        self.first = nn.Parameter(torch.randn(dims + 3, 16, dtype=dtype, generator=generator))
        self.second = nn.Parameter(torch.randn(16, dims, dtype=dtype, generator=generator) / 4)
        self.label = nn.Parameter(torch.randn((num_classes or 0) + 1, 16, dtype=dtype, generator=generator))

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        assert guidance is not None
        hidden = torch.cat([x_t, torch.stack([t, s, guidance], 1)], 1) @ self.first
        if isinstance(condition, Tensor):
            hidden = hidden + self.label[condition]
        return torch.tanh(hidden) @ self.second


class Spy(nn.Module):
    """Records what a network is asked: (x_t, t, s, condition, guidance), and whether gradients were on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.num_classes = getattr(network, "num_classes", None)
        self.calls: list[tuple[Any, ...]] = []
        self.gradient: list[bool] = []

    def forward(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        self.gradient.append(torch.is_grad_enabled())
        return self.network(*arguments)

    def average_velocity(self, *arguments: Any) -> Any:
        return self.network.average_velocity(*arguments)  # type: ignore[operator]


def antithetic(velocity: Tensor, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror images (x', n') of Gaussian pairs: the same x_t, and n' - x' = 2 E[n - x | x_t] - (n - x)."""
    time = t.unsqueeze(1)
    x_t, mirrored = (1 - time) * x + time * noise, 2 * velocity - (noise - x)
    return x_t - time * mirrored, x_t + (1 - time) * mirrored


def logit_normal_uniform(t: Tensor, location: float, scale: float) -> Tensor:
    """The uniforms whose logit-normal times are ``t``."""
    return 0.5 * torch.special.erfc(-(torch.logit(t) - location) / scale / math.sqrt(2))


def parameter_gradients(per_sample: Tensor, network: nn.Module) -> Tensor:
    """All gradients of the mean, flattened."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    found = torch.autograd.grad(per_sample.mean(), parameters, allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in pairs])
