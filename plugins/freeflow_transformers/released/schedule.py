"""The noising schedule of a discrete diffusion model, seen from the linear path."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor


@final
class DiffusionSchedule:
    """x_vp = alpha_i x + sigma_i e with alpha_i^2 = prod_{j <= i} (1 - beta_j) and alpha_i^2 + sigma_i^2 = 1.

    Ho et al. 2020 (arXiv 2006.11239), eq. 4, with linear betas. The linear path (1 - t) x + t e has the same
    signal-to-noise ratio at t_i = sigma_i / (alpha_i + sigma_i): there x_vp = (alpha_i + sigma_i) x_t.

    Args:
        num_steps: steps, at least 2.
        beta_start, beta_end: of the first and the last step, in (0, 1).

    Attributes:
        times: (num_steps,) t_i, rising, float64.
    """

    def __init__(self, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
        squared = torch.cumprod(1 - betas, dim=0)
        alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
        self.times = sigma / (alpha + sigma)
        self._at: dict[torch.device, Tensor] = {}

    @property
    def time_range(self) -> tuple[float, float]:
        """Linear times of the first and the last step."""
        return float(self.times[0]), float(self.times[-1])

    def step(self, t: Tensor) -> Tensor:
        """The fractional step (N,) float64 at times ``t`` (N,), linear in log-SNR between steps, constant beyond them.

        log-SNR = 2 log((1 - t) / t) falls monotonely, so the steps themselves come out at their own times.
        """
        nodes = self._nodes(t.device)
        t = self.held(t)
        upper = torch.searchsorted(nodes, t).clamp(1, len(nodes) - 1)
        start, end = log_odds(nodes[upper - 1]), log_odds(nodes[upper])
        return upper - 1 + (log_odds(t) - start) / (end - start)

    def held(self, t: Tensor) -> Tensor:
        """``t`` (N,) in float64, held between the first and the last step."""
        return t.double().clamp(*self.time_range)

    def _nodes(self, device: torch.device) -> Tensor:
        """The times on a device, copied there once: precise wherever a module's own tensors go."""
        if device not in self._at:
            self._at[device] = self.times.to(device)
        return self._at[device]


def log_odds(t: Tensor) -> Tensor:
    """log((1 - t) / t), half the log-SNR of the linear path."""
    return torch.log1p(-t) - torch.log(t)


def scale_to_unit_variance(t: Tensor) -> Tensor:
    """c = 1 / sqrt((1 - t)^2 + t^2) (N,): x_vp = c x_t has the same signal-to-noise ratio as x_t = (1 - t) x + t e."""
    return torch.hypot(1 - t, t).reciprocal()
