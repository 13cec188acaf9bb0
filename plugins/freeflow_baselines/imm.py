"""Inductive moment matching: jumps from t and from r < t to s must lead to the same distribution."""

from __future__ import annotations

import dataclasses
from typing import Self, final

import torch
from torch import Tensor

from freeflow_baselines.config_generative import IMMConfig
from freeflow_baselines.group_mmd import group_mmd
from freeflow_baselines.rows import PathRows, draw_guidance, guided_field, noised_rows
from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import (
    AverageVelocityStudent,
    BuildContext,
    Context,
    Models,
    Objective,
    Role,
    StartTimes,
    Student,
    Teacher,
)
from freeflow_core.math.flow import average_velocity_jump, like_states, linear_interpolate
from freeflow_core.objective_kit.passes import velocity_with_gradient, velocity_without_gradient
from freeflow_core.objective_kit.rows import drop_labels
from freeflow_core.types import Batch, Condition, Draws, Loss, Progress


@final
class IMM(Objective):
    """min E w(t) MMD^2( X(x_t, t, s), sg X(x_r, r, s) ) over groups of rows that share the times s <= r < t.

    Inductive moment matching (Zhou et al. 2025, arXiv 2503.07565, section 4 and algorithm 1): x_r is the same sample
    and noise at a slightly lower level, so that distributions at t are learnt from those at r, down to s itself. Needs
    no teacher. Ours: X(x, t, s) = x - (t - s) u(x, t, s) with noise of deviation 1 (the paper's network gives u / 0.5
    for noise of deviation 0.5), and velocity: teacher.

    Fixed point: jumps whose distributions at s agree for all t, hence with the data's; nothing ties a noise to the end
    of its own trajectory. The published V-statistic is not 0 there, for finite groups, and its gradient vanishes only
    as r -> t; the U-statistic's gradient is 0 in the mean. Cost: 2F + B (4F), with velocity: teacher T more. Known
    failures: one row a group has nothing to repel it and blurs (a consistency loss); the kernel divided by sqrt(dim)
    instead of dim. t stays below ``time_high``; a jump from t = 1 relies on the network being smooth.

    Random streams: ``time`` and ``end-time`` of each group's first row, ``noise``, ``guidance``, ``label-dropout``.
    """

    needs_data = True
    requires = AverageVelocityStudent
    start_times = StartTimes.ANY

    def __init__(self, config: IMMConfig) -> None:
        self._config = config
        self.needs_teacher = config.velocity == "teacher"

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, IMMConfig)
        return cls(config)

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        return {}

    def losses(
        self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context
    ) -> dict[str, Loss]:
        config, student = self._config, models["student"]
        leaders = self._leaders(draws)
        t = leaders.uniform("time") * config.time_high
        s = leaders.uniform("end-time") * t
        weight = level_weight(t, offset=config.weight_offset, power=config.weight_power)
        r = lower_level(t, s, config)
        t, s, r, weight, guidance = (
            values.repeat_interleave(config.group_size) for values in (t, s, r, weight, draw_guidance(leaders, config))
        )
        rows = dataclasses.replace(noised_rows(models, batch, draws, t, config), guidance=guidance)
        if config.velocity == "data":
            condition, _ = drop_labels(rows.condition, student.bare.num_classes, config.label_dropout, draws)
            rows = dataclasses.replace(rows, condition=condition)

        x_r = self._lower_state(models, rows, r)
        u = velocity_with_gradient(student, rows.x_t, t, s, rows.condition, guidance)
        u_r = velocity_without_gradient(student, x_r, r, s, rows.condition, guidance)
        width = config.kernel_scale * rows.x_t[0].numel() * (t - s)
        mmd = group_mmd(
            average_velocity_jump(rows.x_t, u, t, s),
            average_velocity_jump(x_r, u_r, r, s),
            width,
            size=config.group_size,
            unbiased=config.statistic == "u",
            comparable=self._comparable(rows.condition),
        )
        return {"student": Loss(like_states(weight, mmd) * mmd, {"mmd": mmd.detach().mean()})}

    def _leaders(self, draws: Draws) -> Draws:
        """The first row of each group: it draws for all. Raises ``ConfigError`` when a group is cut."""
        size, rows = self._config.group_size, len(draws.index)
        if rows % size or (rows and int(draws.position[0]) % size):
            raise ConfigError(
                f"{rows} rows per process and micro-batch cannot be cut into groups of objective.group_size={size}. "
                f"Choose training.batch_size so that each of its parts holds a multiple of {size} rows."
            )
        return draws.rows(torch.arange(0, rows, size))

    @torch.no_grad()
    def _lower_state(self, models: Models, rows: PathRows, r: Tensor) -> Tensor:
        """x_r (N, *D): the same data and noise, or one Euler step of the teacher from x_t."""
        if self._config.velocity == "data":
            return linear_interpolate(rows.x, rows.noise, like_states(r, rows.x))
        v = guided_field(models, rows.x_t, rows.t, rows.condition, rows.guidance, self._config)
        return average_velocity_jump(rows.x_t, v, rows.t, r)

    def _comparable(self, condition: Condition) -> Tensor | None:
        """(groups, size, size): pairs with equal labels, or None for all pairs."""
        if self._config.label_kernel == "any" or condition is None:
            return None
        if not isinstance(condition, Tensor) or condition.ndim != 1:
            raise ConfigError(
                "objective.label_kernel=same compares labels, one number a sample; this source's condition is "
                "something else. Set objective.label_kernel=any."
            )
        labels = condition.reshape(-1, self._config.group_size)
        return labels.unsqueeze(2) == labels.unsqueeze(1)


def lower_level(t: Tensor, s: Tensor, config: IMMConfig) -> Tensor:
    """r = max(s, eta^-1(eta(t) - 2^-k eta(time_high))) with eta(t) = t / (1 - t) (Zhou et al. 2025).

    Args:
        t, s: (N,) times on the host, s <= t.

    Returns:
        (N,) in [s, t), at least ``gap_min`` below t where s allows it.
    """
    gap = config.time_high / (1 - config.time_high) * 2.0**-config.gap_exponent
    eta = (t / (1 - t) - gap).clamp_min(0)
    return torch.maximum(s, torch.minimum(eta / (1 + eta), t - config.gap_min))


def level_weight(t: Tensor, *, offset: float, power: float) -> Tensor:
    """w = 1/2 sigmoid(b - lambda) (-d lambda / dt) (1 - t)^a / ((1 - t)^2 + t^2), lambda = 2 log((1 - t) / t).

    (N,) for times ``t`` (N,) in (0, 1) on the host (Zhou et al. 2025).
    """
    log_snr = 2 * ((1 - t) / t).log()
    slope = 2 / (t * (1 - t))
    return 0.5 * torch.sigmoid(offset - log_snr) * slope * (1 - t).pow(power) / ((1 - t).square() + t.square())
