"""Exact networks of every convention, for data x ~ N(mean, std^2); alpha and sigma are written out here again."""

import math
from dataclasses import dataclass

import torch


def ddpm_tables(scaled=False, num=1000):
    """alpha_i and sigma_i by the textbook."""
    if scaled:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, num, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(1e-4, 0.02, num, dtype=torch.float64)
    squared = torch.cumprod(1 - betas, 0)
    return squared.sqrt(), (1 - squared).sqrt()


def path(schedule, tau):
    """alpha, sigma and their derivatives at the path's own noise time; for ddpm at its steps tau = i / 1000."""
    if schedule == "linear":
        return 1 - tau, tau, -torch.ones_like(tau), torch.ones_like(tau)
    if schedule == "cosine":
        half = math.pi / 2
        a, s = torch.cos(half * tau), torch.sin(half * tau)
        return a, s, -half * s, half * a
    if schedule == "vp":
        a = torch.exp(-0.25 * tau**2 * 19.9 - 0.05 * tau)
        s = (1 - a**2).sqrt()
        beta = 0.1 + tau * 19.9
        return a, s, -0.5 * beta * a, 0.5 * beta * a**2 / s
    if schedule == "ve":
        return torch.ones_like(tau), tau, torch.zeros_like(tau), torch.ones_like(tau)
    alphas, sigmas = ddpm_tables(schedule == "ddpm-scaled-linear")
    position = (tau * 1000).clamp(0, 999)
    lower = position.floor().long().clamp(0, 998)
    logs = (alphas / sigmas).log()
    ratio = torch.exp(logs[lower] + (position - lower) * (logs[lower + 1] - logs[lower]))
    sigma = (1 + ratio**2) ** -0.5
    return ratio * sigma, sigma, torch.zeros_like(tau), torch.zeros_like(tau)


@dataclass(frozen=True)
class ExactNetwork:
    """f(x, time) of one convention; a function of its arguments, as a user would write it."""

    prediction: str = "velocity"
    schedule: str = "linear"
    direction: str = "data-at-0"
    sign: str = "noise-minus-data"
    time_scale: float = 1.0
    mean: tuple[float, ...] = (0.5, -1.0)
    std: tuple[float, ...] = (0.5, 2.0)

    def __call__(self, x, time):
        tau = time.double() / self.time_scale
        tau = 1 - tau if self.direction == "data-at-1" else tau
        a, s, a_rate, s_rate = (value[:, None] for value in path(self.schedule, tau))
        mean, variance = torch.tensor(self.mean).double(), torch.tensor(self.std).double() ** 2
        total = a**2 * variance + s**2
        centred = x.double() - a * mean
        data, noise = mean + a * variance / total * centred, s / total * centred
        answer = {
            "data": data,
            "noise": noise,
            "score": -centred / total,
            "v-prediction": a * noise - s * data,
            "velocity": a_rate * data + s_rate * noise,
        }[self.prediction]
        return (-answer if self.sign == "data-minus-noise" else answer).to(x.dtype)
