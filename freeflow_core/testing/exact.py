"""A teacher and a student whose every answer is known, for checking objectives, samplers and engines.

Both describe data from a Gaussian with independent coordinates, x ~ N(mean, diag(std^2)), on the linear path.
"""

from __future__ import annotations

from typing import Self, final

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn

from freeflow_core.config.component import ComponentConfig
from freeflow_core.interfaces import AverageVelocityStudent, BuildContext, Teacher
from freeflow_core.math.flow import expand_times
from freeflow_core.network_file import build_network
from freeflow_core.types import Condition, LoadReport, NetworkState

_FAMILY = "exact-gaussian"


class GaussianConfig(ComponentConfig):
    """Options of the two exact components, so that plugin authors can register them in a test."""

    mean: tuple[float, ...] = Field((0.5, -1.0), min_length=1, description="Mean of each coordinate.")
    std: tuple[PositiveFloat, ...] = Field((0.5, 2.0), min_length=1, description="Deviation of each coordinate.")

    @model_validator(mode="after")
    def _check(self) -> GaussianConfig:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} entries and std {len(self.std)}; they must be equal")
        return self


@final
class GaussianTeacher(Teacher):
    """v(x_t, t) = E[n - x | x_t] = -mean + (t - (1 - t) std^2) / std_t^2 * (x_t - (1 - t) mean).

    Here std_t^2 = (1 - t)^2 std^2 + t^2. Unconditional; computed in the dtype of the states.

    Args:
        mean: (*D).
        std: positive, of a shape that broadcasts to (*D).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        mean, std = _checked(mean, std)
        self.sample_shape = tuple(mean.shape)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def from_config(cls, config: GaussianConfig, context: BuildContext) -> Self:
        return cls(torch.tensor(config.mean), torch.tensor(config.std))

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        t = expand_times(t, x_t)
        mean, std = self.mean.to(x_t), self.std.to(x_t)
        slope = (t - (1 - t) * std.square()) / ((1 - t).square() * std.square() + t.square())
        return slope * (x_t - (1 - t) * mean) - mean

    def exact_flow_map(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """X(x_t, t, s) = (1 - s) mean + std_s / std_t (x_t - (1 - t) mean), (N, *D)."""
        t, s = expand_times(t, x_t), expand_times(s, x_t)
        mean, std = self.mean.to(x_t), self.std.to(x_t)
        return (1 - s) * mean + _spread(std, s) / _spread(std, t) * (x_t - (1 - t) * mean)

    def null_condition(self, condition: Condition) -> Condition:
        """None: the teacher is unconditional, so its guided velocity is its velocity at every weight."""
        return None


@final
class GaussianStudent(AverageVelocityStudent):
    """The exact average velocity of N(mean, diag(std^2)) with ``mean`` and ``std`` as trainable parameters.

    u(x_t, t, s) = -mean + (t + s - (2 - t - s) std^2) / (std_t (std_t + std_s)) * (x_t - (1 - t) mean).
    The factor (std_t - std_s) / (t - s) is written without the difference, so that nothing cancels: u is finite and
    smooth at s = t, where it is the velocity. At a :class:`GaussianTeacher`'s own parameters it is the exact map.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        mean, std = _checked(mean, std)
        self.sample_shape = tuple(mean.shape)
        self.mean = nn.Parameter(mean)
        self.std = nn.Parameter(std)

    @classmethod
    def from_config(cls, config: GaussianConfig, context: BuildContext) -> Self:
        return cls(torch.tensor(config.mean), torch.tensor(config.std))

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        t, s = expand_times(t, x_t), expand_times(s, x_t)
        mean, std = self.mean.to(x_t), self.std.to(x_t)
        spread_t, spread_s = _spread(std, t), _spread(std, s)
        slope = (t + s - (2 - t - s) * std.square()) / (spread_t * (spread_t + spread_s))
        return slope * (x_t - (1 - t) * mean) - mean

    def average_velocity(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return output

    def load_teacher(self, teacher: Teacher) -> LoadReport:
        """Take nothing: the parameters are the test's own, and training should have something to do."""
        state = teacher.network_state()
        return LoadReport(new=tuple(self.state_dict()), left=() if state is None else tuple(state.tensors))

    def network_state(self) -> NetworkState:
        return NetworkState(_FAMILY, {"sample_shape": list(self.sample_shape)}, self.state_dict())

    @classmethod
    def from_state(cls, state: NetworkState) -> Self:
        def make(sample_shape: tuple[int, ...]) -> Self:
            return cls(torch.zeros(sample_shape), torch.ones(sample_shape))

        return build_network(make, state, _FAMILY, "exact student's checkpoint")


def _spread(std: Tensor, t: Tensor) -> Tensor:
    """Deviation of x_t."""
    return ((1 - t).square() * std.square() + t.square()).sqrt()


def _checked(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    if not mean.is_floating_point() or not bool((std > 0).all()):
        raise ValueError(f"a Gaussian needs a floating mean and positive std, got {mean.dtype} and {std.tolist()}")
    return mean.detach().clone(), std.detach().to(mean).expand_as(mean).clone()
