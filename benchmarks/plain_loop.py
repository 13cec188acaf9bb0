"""FreeFlow's training step as one plain loop: no engine, no plugin, no draws that survive a restart.

Written from the formulas of Tong et al. 2025 (arXiv 2511.19428) in the project's convention, t = 0 data and t = 1
noise, with every gradient by hand instead of a loss. It serves twice: as the time that the engine's step is measured
against, and as a second derivation that the engine's step must agree with, weight for weight.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from freeflow_core.config import RunConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import AverageVelocityStudent, Teacher


@final
@dataclass(frozen=True)
class StepDraws:
    """What one step draws; prediction rows first, then the C correction rows.

    Args:
        z: (N, *D) prior draws.
        labels: (N,) classes, or None.
        d: (N,) durations in (0, 1], float64 on the host; 1 in the correction rows.
        guidance: (N,) guidance weights, float64 on the host.
        r: (C,) noise levels in (0, 1), float64 on the host.
        n: (C, *D) noise of the correction.
    """

    z: Tensor
    labels: Tensor | None
    d: Tensor
    guidance: Tensor
    r: Tensor
    n: Tensor


@final
class PlainLoop:
    """Trains ``student`` and ``fake_velocity`` in place; ``ema`` is the student's average.

    Args:
        config: a resolved run of the objective ``freeflow``.
        student, fake_velocity: on their device and in their precision.
        teacher: frozen.

    Raises:
        ConfigError: the run asks for something that this loop does not do.
    """

    def __init__(
        self,
        config: RunConfig,
        student: AverageVelocityStudent,
        fake_velocity: AverageVelocityStudent,
        teacher: Teacher,
    ) -> None:
        _check_supported(config, teacher)
        self.training = config.training
        options: Any = config.objective.options
        self.objective = options
        self.student, self.fake_velocity, self.teacher = student, fake_velocity, teacher
        self.ema = copy.deepcopy(student).requires_grad_(False)
        self.rows = config.training.batch_size
        self.num_prediction = self.rows - math.floor(self.rows * options.correction_share + 1e-9)
        self.images = 0
        self._signal = torch.zeros(8, 2)
        self._weights: list[Tensor] = list(student.parameters())
        self._average: list[Tensor] = list(self.ema.parameters())
        adam = config.training.optimizer
        self._adam = torch.optim.AdamW(
            [*self._weights, *fake_velocity.parameters()],
            lr=adam.learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.epsilon,
            weight_decay=adam.weight_decay,
            fused=True,
        )

    def draw(self) -> StepDraws:
        """Draws of torch's own generator, for when nothing but their sizes and distributions matters."""
        o, num, P = self.objective, self.rows, self.num_prediction
        like = self._weights[0]
        shape = self.teacher.sample_shape
        classes = self.teacher.num_classes
        d = 1 - torch.rand(num, dtype=torch.float64)
        d[P:] = 1
        return StepDraws(
            z=torch.randn(num, *shape, device=like.device, dtype=like.dtype),
            labels=None if classes is None else torch.randint(classes, (num,)),
            d=d,
            guidance=o.guidance_min + (o.guidance_max - o.guidance_min) * torch.rand(num, dtype=torch.float64),
            r=torch.sigmoid(o.r_location + o.r_scale * torch.randn(num - P, dtype=torch.float64)),
            n=torch.randn(num - P, *shape, device=like.device, dtype=like.dtype),
        )

    def step(self, draws: StepDraws) -> None:
        """One step of both networks and of the average."""
        o, P = self.objective, self.num_prediction
        z, labels = draws.z, draws.labels
        d, g, r = draws.d.to(z), draws.guidance.to(z), draws.r.to(z)
        u = _velocity(self.student, z, torch.ones_like(d), 1 - d, labels, g)

        with torch.no_grad():
            x = z - _column(d, z) * u  # f(z, d); where d = 1, the student's samples
            x_r = (1 - _column(r, z)) * x[P:] + _column(r, z) * draws.n
            times = torch.cat([1 - d[:P], r])
            v = self.teacher.guided_velocity(torch.cat([x[:P], x_r]), times, labels, self.teacher_weights(draws))
            # Prediction: Delta_G = u + d du/dd - v(f, 1 - d), the residual of the exact map's identity.
            delta_g = u[:P] + _column(d[:P], z) * self._derivative(draws, u.detach()[:P]) - v[:P]
            square_g = delta_g.square().flatten(1).mean(1)
            weight_g = (square_g + o.weight_epsilon) ** -o.weight_power

        v_n = _velocity(self.fake_velocity, x_r, r, r, _part(labels, P), g[P:])
        with torch.no_grad():
            # Correction: Delta_N = v_N - v at (x_r, r). Flow matching for v_N itself, whose target is n - x.
            delta_n = v_n - v[P:]
            square_n = delta_n.square().flatten(1).mean(1)
            weight_n = (square_n + o.weight_epsilon) ** -o.correction_weight_power
            norm_g, norm_n = square_g.sqrt(), square_n.sqrt()
            if o.balance != "raw":
                norm_g, norm_n = weight_g * norm_g, weight_n * norm_n
            balance = o.balance_strength * norm_g.mean() / (norm_n.mean() + o.balance_epsilon)
            if o.balance == "signal":
                # rho = <Delta_N, (n - x) - v> / Delta_N^2, averaged in eight parts of the noise levels.
                true = (delta_n * (draws.n - x[P:] - v[P:])).flatten(1).mean(1)
                level, decay = (draws.r * 8).long(), 0.5 ** (self.rows / o.signal_halflife_images)
                means = torch.zeros(8, 2).to(z).index_add_(0, level, torch.stack([true, square_n], 1)) / len(r)
                self._signal = decay * self._signal.to(z) + (1 - decay) * means
                rho = self._signal[:, 0] / self._signal[:, 1].clamp(min=1e-12)
                balance = balance * rho.clamp(0, 1)[level]
            # All means run over the dimensions of a state and the rows of the batch.
            for_student = torch.cat([_column(weight_g, z) * delta_g, _column(balance * weight_n, z) * delta_n])
            for_fake = 2 * (v_n - (draws.n - x[P:])) / v_n.numel()
        torch.autograd.backward([u, v_n], [for_student / u.numel(), for_fake])
        self.update()

    def update(self) -> None:
        """AdamW for both networks, and the student's average; gradients are dropped."""
        training = self.training
        for group in self._adam.param_groups:
            group["lr"] = self._rate()
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self.images += self.rows
        ramp = training.ema.rampup_ratio
        halflife = (
            training.ema.halflife_images if ramp is None else min(training.ema.halflife_images, self.images * ramp)
        )
        torch._foreach_lerp_(
            self._average, [weight.detach() for weight in self._weights], 1 - 0.5 ** (self.rows / halflife)
        )

    def teacher_weights(self, draws: StepDraws) -> Tensor:
        """(N,) the teacher's guidance on the host: g for prediction, 1 + c (g - 1) for correction, in intervals."""
        o, P = self.objective, self.num_prediction
        t, g = 1 - draws.d[:P], draws.guidance
        low, high = o.guidance_interval
        ahead = torch.where((t >= low) & (t <= high), g[:P], 1.0)
        low, high = o.correction_guidance_interval
        strength = 1 + o.correction_guidance_scale * (g[P:] - 1)
        return torch.cat([ahead, torch.where((draws.r >= low) & (draws.r <= high), strength, 1.0)])

    def _derivative(self, draws: StepDraws, u: Tensor) -> Tensor:
        """du/dd of the prediction rows. Differences that would leave [0, 1] lean the other way."""
        P, h = self.num_prediction, self.objective.derivative_step
        z, d = draws.z[:P], draws.d[:P]
        labels, g = _part(draws.labels, 0, P), draws.guidance[:P].to(z)

        def at(durations: Tensor, rows: Tensor | None = None) -> Tensor:
            chosen, c, w = (
                (z, labels, g) if rows is None else (z[rows], None if labels is None else labels[rows], g[rows])
            )
            s = (1 - durations).to(z)
            return _velocity(self.student, chosen, torch.ones_like(s), s, c, w)

        if self.objective.derivative == "one-sided":
            step = torch.where(d > h, -h, h)
            return (at(d + step) - u) / _column(step, z)
        inside = (d >= h) & (d <= 1 - h)
        lean = torch.where(d < 0.5, h, -h)
        both = at(
            torch.cat([torch.where(inside, d + h, d + lean), torch.where(inside, d - h, d + 2 * lean)]),
            torch.arange(P).repeat(2),
        )
        first, second = both[:P], both[P:]
        slope = (first - second) / (2 * h)
        edge = (~inside).nonzero().flatten()
        if len(edge):
            slope[edge] = (4 * first[edge] - 3 * u[edge] - second[edge]) / _column(2 * lean[edge], z)
        return slope

    def _rate(self) -> float:
        """Linear warm-up over ``warmup_images``, then the peak, or a line down to ``final_fraction`` of it."""
        adam = self.training.optimizer
        if self.images < adam.warmup_images:
            return adam.learning_rate * (self.images + 1) / (adam.warmup_images + 1)
        if adam.schedule == "constant":
            return adam.learning_rate
        gone = min(1.0, (self.images - adam.warmup_images) / max(1, self.training.images - adam.warmup_images))
        return adam.learning_rate * (1 - (1 - adam.final_fraction) * gone)


def _velocity(
    network: AverageVelocityStudent, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None, g: Tensor
) -> Tensor:
    return network.average_velocity(network(x, t, s, labels, g), x, t, s)


def _part(labels: Tensor | None, start: int, stop: int | None = None) -> Tensor | None:
    return None if labels is None else labels[start:stop]


def _column(values: Tensor, like: Tensor) -> Tensor:
    """(N,) as (N, 1, ..., 1), to multiply states."""
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))


def _check_supported(config: RunConfig, teacher: Teacher) -> None:
    """Refuse what the loop leaves out, so that it never stands beside another method than the engine's."""
    if config.objective.name != "freeflow":
        raise ConfigError(f"The plain loop is that of the objective 'freeflow', not of {config.objective.name!r}.")
    o: Any = config.objective.options
    training = config.training
    expected = {
        "objective.derivative": (o.derivative, ("one-sided", "central")),
        "objective.duration": (o.duration, ("uniform",)),
        "objective.duration_min": (o.duration_min, (0.0,)),
        "objective.endpoint_share": (o.endpoint_share, (0.0,)),
        "objective.check_derivative_every": (o.check_derivative_every, (0,)),
        "objective.r_distribution": (o.r_distribution, ("logit-normal",)),
        "objective.r_low": (o.r_low, (0.0,)),
        "objective.r_high": (o.r_high, (1.0,)),
        "objective.adaptive": (o.adaptive, (True,)),
        "objective.correction_warmup_images": (o.correction_warmup_images, (0,)),
        "objective.fake_velocity_optimizer": (o.fake_velocity_optimizer, (None,)),
        "training.accumulation": (training.accumulation, (1,)),
        "training.optimizer.clip_norm": (training.optimizer.clip_norm, (None,)),
        "training.optimizer.schedule": (training.optimizer.schedule, ("constant", "linear")),
        "runtime.precision": (config.runtime.precision, ("float32", "float64")),
        "runtime.compile": (config.runtime.compile, (False,)),
        "the teacher's time_range": (tuple(teacher.time_range), ((0.0, 1.0),)),
    }
    for name, (value, allowed) in expected.items():
        if value not in allowed:
            choices = " or ".join(str(choice) for choice in allowed)
            raise ConfigError(f"The plain loop supports {name} = {choices}, but the run has {value}. Change the run.")
