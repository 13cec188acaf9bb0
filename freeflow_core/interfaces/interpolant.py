"""Paths between data and noise."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self, final

from torch import Tensor

from freeflow_core.config.component import ComponentConfig
from freeflow_core.interfaces.build import Buildable, BuildContext
from freeflow_core.math.interpolants import linear_interpolate, linear_velocity


class Interpolant(Buildable):
    """x_t = alpha(t) x + sigma(t) n with t = 0 data and t = 1 noise; times and results are (N,)."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise."""

    @abstractmethod
    def interpolate(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t (N, *D) from ``x`` and ``noise`` (N, *D) at ``t`` (N,)."""

    @abstractmethod
    def velocity(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """dx_t/dt (N, *D) along the path of one pair."""


@final
class LinearInterpolant(Interpolant):
    """x_t = (1 - t) x + t n, v = n - x: the path of every built-in teacher, hence the default (Lipman et al. 2022)."""

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        return cls()

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def interpolate(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return linear_interpolate(x, noise, t)

    def velocity(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return linear_velocity(x, noise)
