"""Exact networks of every convention, for data x ~ N(mean, std^2); alpha and sigma are written out here again."""

import math
from dataclasses import dataclass

import torch
from torch import nn


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
        s = (1 - a**2).sqrt().clamp_min(1e-8)  # at tau = 0 its rate is infinite, and times the noise there finite
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


class MLP(nn.Module):
    """The time as one more column: nothing embeds it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x, t):
        return self.net(torch.cat([x, t[:, None]], 1))


class ManyEmbeddings(nn.Module):
    """Each block embeds the time anew; one layer is never used."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.unused = nn.Linear(2, 16), nn.Linear(16, 2), nn.Linear(2, 2)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.times = nn.ModuleList(nn.Linear(1, 16) for _ in range(3))

    def forward(self, x, t):
        hidden = self.first(x)
        for block, time in zip(self.blocks, self.times, strict=True):
            hidden = hidden + torch.relu(block(hidden) + time(t[:, None]))
        return self.last(hidden)


class ConvBlock(nn.Module):
    def __init__(self, channels, out):
        super().__init__()
        self.conv, self.norm, self.time = (
            nn.Conv2d(channels, out, 3, padding=1),
            nn.BatchNorm2d(out),
            nn.Linear(16, out),
        )
        self.drop = nn.Dropout(0.1)

    def forward(self, x, embedding):
        return torch.relu(self.drop(self.norm(self.conv(x))) + self.time(self.drop(embedding))[..., None, None])


class UNet(nn.Module):
    """ReLU and BatchNorm, as people write it."""

    def __init__(self):
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        self.labels = nn.Embedding(11, 16)
        self.down, self.middle, self.up = ConvBlock(1, 8), ConvBlock(8, 8), ConvBlock(16, 8)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, x, t, y):
        angles = t[:, None] * torch.arange(1, 5, device=t.device)
        embedding = self.time_embed(torch.cat([angles.sin(), angles.cos()], 1)) + self.labels(y)
        high = self.down(x, embedding)
        low = nn.functional.interpolate(self.middle(nn.functional.max_pool2d(high, 2), embedding), scale_factor=2)
        return self.out(self.up(torch.cat([high, low], 1), embedding))


def seeded(name):
    """A network of random weights, the same each time, its statistics not those of fresh layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = {"mlp": MLP, "many": ManyEmbeddings, "unet": UNet}[name]()
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return network
