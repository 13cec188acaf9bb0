"""A noise-predicting diffusion transformer (DiT), as a velocity on the linear path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext
from freeflow_core.math.derivative import full_precision
from freeflow_core.math.flow import expand_times
from freeflow_core.types import Condition
from freeflow_transformers.config import DiTTeacherConfig
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.released.loading import load_teacher_network
from freeflow_transformers.teachers import NetworkTeacher


@final
class DiffusionSchedule:
    """x_vp = alpha_i x + sigma_i e with alpha_i^2 = prod_{j <= i} (1 - beta_j) and alpha_i^2 + sigma_i^2 = 1.

    Ho et al. 2020, eq. 4, with linear betas. The linear path (1 - t) x + t e has the same
    signal-to-noise ratio at t_i = sigma_i / (alpha_i + sigma_i): there x_vp = (alpha_i + sigma_i) x_t.

    ``times`` (num_steps,) are the t_i, rising, in float64; ``time_range`` is the first and the last of them.
    """

    def __init__(self, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
        squared = torch.cumprod(1 - betas, dim=0)
        alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
        self.times = sigma / (alpha + sigma)
        self.time_range = float(self.times[0]), float(self.times[-1])
        self._at: dict[torch.device, Tensor] = {}  # copied once a device; precise wherever a module's own tensors go

    def step(self, t: Tensor) -> Tensor:
        """The fractional step (N,) float64 at times ``t`` (N,), linear in log-SNR between steps, constant beyond them.

        log-SNR = 2 log((1 - t) / t) falls monotonely, so the steps themselves come out at their own times.
        """
        nodes = self._at.setdefault(t.device, self.times.to(t.device))
        t = self.held(t)
        upper = torch.searchsorted(nodes, t).clamp(1, len(nodes) - 1)
        start, end = log_odds(nodes[upper - 1]), log_odds(nodes[upper])
        return upper - 1 + (log_odds(t) - start) / (end - start)

    def held(self, t: Tensor) -> Tensor:
        """``t`` (N,) in float64, held between the first and the last step."""
        return t.double().clamp(*self.time_range)


def log_odds(t: Tensor) -> Tensor:
    """log((1 - t) / t), half the log-SNR of the linear path."""
    return torch.log1p(-t) - torch.log(t)


def scale_to_unit_variance(t: Tensor) -> Tensor:
    """c = 1 / sqrt((1 - t)^2 + t^2) (N,): x_vp = c x_t has the same signal-to-noise ratio as x_t = (1 - t) x + t e."""
    return torch.hypot(1 - t, t).reciprocal()


def velocity_from_noise(noise: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """v = e - x_hat = (e - x_t) / (1 - t), since x_t = (1 - t) x_hat + t e; (N, *D), for ``t`` (N,) < 1."""
    return (noise - x_t) * expand_times((1 - t).reciprocal(), x_t)


@final
class NoiseTeacher(NetworkTeacher):
    """v(x_t, t, c) of a network that predicts the noise e of a discrete schedule (Peebles & Xie 2022).

    At equal signal-to-noise ratio x_vp = c x_t; the network is asked at x_vp and at the fractional step of t. Euler
    steps of this field between the schedule's own times are DDIM steps (Song et al. 2021, eq. 12 with
    sigma = 0).

    Beyond the first and the last step (t = 0.0099 and 0.9937 for DiT) the field is continued constantly in t.
    ``time_range`` are these ends: objectives that choose their own states stay between them, where state and step
    belong together; a sampler that starts at t = 1 uses the continuation.

    Near the last step 1 / (1 - t) amplifies errors of e up to 158 times. So the network runs in float32 at least,
    without autocast and TF32, whatever the run's precision.

    Raises:
        ConfigError: the network is a student, or predicts a velocity.
    """

    def __init__(self, network: DiffusionTransformer, schedule: DiffusionSchedule) -> None:
        super().__init__(network)
        if network.config.prediction != "noise":
            raise ConfigError("This network predicts a velocity, not the noise. Use it as the teacher `sit`.")
        self.schedule = schedule
        self.time_range = schedule.time_range

    @classmethod
    def from_config(cls, config: DiTTeacherConfig, context: BuildContext) -> Self:
        """Raises ``CheckpointError`` for a file that is missing, damaged or of another family."""
        loaded = load_teacher_network(config, context)
        schedule = DiffusionSchedule(config.diffusion_steps, config.beta_start, config.beta_end)
        teacher = cls(loaded.network, schedule).to(context.device)
        loaded.describe(teacher, teacher.noise, noise_time=schedule.time_range[1])
        return teacher

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        t = self.schedule.held(t)
        x = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        return velocity_from_noise(self.noise(x, t, condition), x, t).to(x_t.dtype)

    def noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """e (N, C, H, W) for states ``x_t`` of the linear path at ``t`` (N,) within ``time_range``."""
        with full_precision(x_t), _exact_convolutions():
            x_vp = expand_times(scale_to_unit_variance(t), x_t) * x_t
            output: Tensor = self.network(x_vp, self.schedule.step(t), condition)
        return output[:, : self.sample_shape[0]]


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """No TF32 in the patch embedding, where PyTorch allows it by default."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
