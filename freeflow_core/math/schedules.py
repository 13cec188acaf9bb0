"""Noising schedules of other codes, seen from the linear path.

A schedule is a path x_own = alpha(tau) x + sigma(tau) n over the network's own noise time tau, rising from data to
noise. At equal signal-to-noise ratio sigma / alpha = t / (1 - t), so that x_own = (alpha + sigma) x_t for the state
x_t = (1 - t) x + t n of the linear path at t = sigma / (alpha + sigma).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor


class Schedule(ABC):
    """One path. All times and results are (N,) float64.

    Attributes:
        time_range: linear times of the schedule's own ends, where it does not reach pure data or pure noise.
        default_scale: what its tau, in [0, 1] unless said otherwise, is multiplied by for the network.
        reversible: whether the network may count its time from the noise instead.
    """

    time_range: tuple[float, float] = (0.0, 1.0)
    default_scale: float = 1.0
    reversible: bool = True

    @abstractmethod
    def own_time(self, t: Tensor) -> Tensor:
        """tau at linear times ``t`` within ``time_range``."""

    @abstractmethod
    def alpha(self, tau: Tensor) -> Tensor:
        """Weight of the data."""

    @abstractmethod
    def sigma(self, tau: Tensor) -> Tensor:
        """Weight of the noise."""

    def rates(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / d tau, d sigma / d tau). Raises ``ValueError`` for a schedule of discrete steps."""
        raise ValueError(f"{type(self).__name__} consists of steps and has no velocity of its own")


@final
class LinearSchedule(Schedule):
    """alpha = 1 - tau, sigma = tau: flow matching, rectified flow (Lipman et al. 2022; Liu et al. 2022)."""

    def own_time(self, t: Tensor) -> Tensor:
        return t

    def alpha(self, tau: Tensor) -> Tensor:
        return 1 - tau

    def sigma(self, tau: Tensor) -> Tensor:
        return tau

    def rates(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(tau), torch.ones_like(tau)


@final
class CosineSchedule(Schedule):
    """alpha = cos(pi tau / 2), sigma = sin(pi tau / 2) (Salimans & Ho 2022; SiT's "GVP" path)."""

    def own_time(self, t: Tensor) -> Tensor:
        return torch.atan2(t, 1 - t) * (2 / math.pi)

    def alpha(self, tau: Tensor) -> Tensor:
        return torch.cos(tau * (math.pi / 2))

    def sigma(self, tau: Tensor) -> Tensor:
        return torch.sin(tau * (math.pi / 2))

    def rates(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        return -self.sigma(tau) * (math.pi / 2), self.alpha(tau) * (math.pi / 2)


@final
class VPSchedule(Schedule):
    """The variance-preserving SDE (Song et al. 2021, eq. 29-33), with tau in [1e-3, 1].

    Its velocity is infinite at tau = 0; Song's samplers stop at 1e-3 too (appendix C).
    alpha = exp(-a / 2), sigma^2 = 1 - alpha^2, a = tau^2 (beta_max - beta_min) / 2 + tau beta_min.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        self._low, self._high = beta_min, beta_max
        ends = torch.tensor([1e-3, 1.0], dtype=torch.float64)
        alpha, sigma = self.alpha(ends), self.sigma(ends)
        low, high = (sigma / (alpha + sigma)).tolist()
        self.time_range = (low, high)

    def own_time(self, t: Tensor) -> Tensor:
        ratio = t / (1 - t)
        exponent = torch.log1p(ratio.square())  # -2 log alpha
        slope = self._high - self._low
        return 2 * exponent / (self._low + torch.sqrt(self._low**2 + 2 * slope * exponent))

    def alpha(self, tau: Tensor) -> Tensor:
        return torch.exp(-self._exponent(tau) / 2)

    def sigma(self, tau: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._exponent(tau)))

    def rates(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        beta = self._low + tau * (self._high - self._low)
        alpha = self.alpha(tau)
        return -beta * alpha / 2, beta * alpha.square() / (2 * self.sigma(tau))

    def _exponent(self, tau: Tensor) -> Tensor:
        return tau.square() * (self._high - self._low) / 2 + tau * self._low


@final
class DiscreteSchedule(Schedule):
    """alpha_i^2 = prod_{j <= i} (1 - beta_j) at steps i = 0 ... K - 1 (Ho et al. 2020, eq. 4).

    tau = i / K, so that the default scale K feeds the network the step itself; between steps it is linear in log-SNR.

    ``betas``: (K,) variances that the steps add, in (0, 1), K >= 2.
    """

    def __init__(self, betas: Tensor) -> None:
        squared = torch.cumprod(1 - betas.double(), dim=0)
        times = torch.sqrt(1 - squared) / (torch.sqrt(squared) + torch.sqrt(1 - squared))
        self.default_scale = float(len(betas))
        self.time_range = (float(times[0]), float(times[-1]))
        self._nodes = times

    @classmethod
    def linear(cls, num_steps: int, beta_start: float, beta_end: float) -> DiscreteSchedule:
        """Betas equally spaced (DDPM, DiT)."""
        return cls(torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64))

    def own_time(self, t: Tensor) -> Tensor:
        nodes = self._nodes.to(t.device)
        t = t.clamp(*self.time_range)
        upper = torch.searchsorted(nodes, t).clamp(1, len(nodes) - 1)
        start, end = _log_odds(nodes[upper - 1]), _log_odds(nodes[upper])
        return (upper - 1 + (_log_odds(t) - start) / (end - start)) / len(nodes)

    def alpha(self, tau: Tensor) -> Tensor:
        t = self._linear_time(tau)
        return (1 - t) / torch.hypot(1 - t, t)

    def sigma(self, tau: Tensor) -> Tensor:
        t = self._linear_time(tau)
        return t / torch.hypot(1 - t, t)

    def _linear_time(self, tau: Tensor) -> Tensor:
        nodes = self._nodes.to(tau.device)
        step = tau * len(nodes)
        lower = step.floor().long().clamp(0, len(nodes) - 2)
        start, end = _log_odds(nodes[lower]), _log_odds(nodes[lower + 1])
        return torch.sigmoid(-(start + (step - lower) * (end - start)))


@final
class VESchedule(Schedule):
    """alpha = 1, sigma = tau in [sigma_min, sigma_max]: variance exploding (Karras et al. 2022)."""

    reversible = False

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        self.time_range = (sigma_min / (1 + sigma_min), sigma_max / (1 + sigma_max))

    def own_time(self, t: Tensor) -> Tensor:
        return t / (1 - t)

    def alpha(self, tau: Tensor) -> Tensor:
        return torch.ones_like(tau)

    def sigma(self, tau: Tensor) -> Tensor:
        return tau

    def rates(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(tau), torch.ones_like(tau)


def _scaled_linear(num_steps: int, beta_start: float, beta_end: float) -> Schedule:
    """Square roots of the betas equally spaced (latent diffusion, Stable Diffusion)."""
    roots = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_steps, dtype=torch.float64)
    return DiscreteSchedule(roots.square())


SCHEDULES: Mapping[str, tuple[Callable[[int, float, float], Schedule], float, float]] = {
    "linear": (lambda num_steps, start, end: LinearSchedule(), 0, 0),
    "cosine": (lambda num_steps, start, end: CosineSchedule(), 0, 0),
    "vp": (lambda num_steps, start, end: VPSchedule(start, end), 0.1, 20.0),
    "ddpm": (DiscreteSchedule.linear, 1e-4, 0.02),
    "ddpm-scaled-linear": (_scaled_linear, 0.00085, 0.012),
    "ve": (lambda num_steps, start, end: VESchedule(start, end), 0.002, 80.0),
}
"""By name: how a schedule is made of its number of steps (ddpm) and its two ends, and the usual ends."""


def named_schedule(
    name: str, *, num_steps: int = 1000, start: float | None = None, end: float | None = None
) -> Schedule:
    """A schedule by name. ``num_steps`` is for ddpm; ``start`` and ``end`` are beta_min and beta_max of vp, the first
    and last beta of ddpm, sigma_min and sigma_max of ve; None: the usual ones. Raises ``ValueError`` for another name.
    """
    if name not in SCHEDULES:
        raise ValueError(f"there is no schedule {name!r}; known: {', '.join(SCHEDULES)}")
    make, first, last = SCHEDULES[name]
    return make(num_steps, first if start is None else start, last if end is None else end)


def _log_odds(t: Tensor) -> Tensor:
    """log((1 - t) / t), half the log-SNR of the linear path."""
    return torch.log1p(-t) - torch.log(t)
