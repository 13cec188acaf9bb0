"""Inductive moment matching: jumps from t and from r < t to s must lead to the same distribution."""

from typing import final

import torch
from torch import Tensor

from freeflow_baselines.config import IMMConfig
from freeflow_baselines.shared import VelocityObjective
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Context, Models
from freeflow_core.math.flow import average_velocity_jump, expand_times, like_states, linear_interpolate
from freeflow_core.objective_kit.jumps import draw_guidance, guided_field
from freeflow_core.objective_kit.passes import velocity_with_gradient, velocity_without_gradient
from freeflow_core.objective_kit.rows import drop_labels, noisy_rows
from freeflow_core.types import Batch, Condition, Draws, Loss, Losses, Progress


@final
class IMM(VelocityObjective):
    """min E w(t) MMD^2( X(x_t, t, s), sg X(x_r, r, s) ) over groups of rows that share the times s <= r < t.

    Inductive moment matching (Zhou et al. 2025, section 4 and algorithm 1): x_r is the same sample
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

    _config: IMMConfig

    def losses(self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context) -> Losses:
        config, student = self._config, models["student"]
        leaders = self._leaders(draws)
        t = leaders.uniform("time") * config.time_high
        s = leaders.uniform("end-time") * t
        r, weight = lower_level(t, s, config), level_weight(t, offset=config.weight_offset, power=config.weight_power)
        t, s, r, weight, guidance = (
            values.repeat_interleave(config.group_size) for values in (t, s, r, weight, draw_guidance(leaders, config))
        )
        rows = noisy_rows(batch, draws, t, guidance)
        condition = rows.condition
        if config.velocity == "data":
            condition, _ = drop_labels(condition, student.bare.num_classes, config.label_dropout, draws)
            x_r = linear_interpolate(rows.x, rows.noise, r)
        else:
            x_r = average_velocity_jump(rows.x_t, guided_field(models, rows.x_t, t, rows, config), t, r)

        u = velocity_with_gradient(student, rows.x_t, t, s, condition, guidance)
        u_r = velocity_without_gradient(student, x_r, r, s, condition, guidance)
        mmd = group_mmd(
            average_velocity_jump(rows.x_t, u, t, s),
            average_velocity_jump(x_r, u_r, r, s),
            width=config.kernel_scale * rows.x_t[0].numel() * (t - s),
            size=config.group_size,
            unbiased=config.statistic == "u",
            comparable=self._comparable(condition),
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

    ``t``, ``s``: (N,) times on the host, s <= t.

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


def group_mmd(
    x: Tensor, y: Tensor, width: Tensor, *, size: int, unbiased: bool, comparable: Tensor | None = None
) -> Tensor:
    """Each row's part (N,) of MMD^2 between ``x`` and ``y`` (N, *D), taken over groups of ``size`` consecutive rows.

    A group's mean over its rows i of  mean_j [k(x_i, x_j) + k(y_i, y_j) - 2 k(x_i, y_j)],  with the Laplace kernel
    k(x, y) = exp(-|x - y|_2 / width) (Zhou et al. 2025, section 4).

    Args:
        width: (N,) positive, equal within a group.
        unbiased: j != i only (the U-statistic, which is 0 in the mean where both distributions agree); else all j.
        comparable: (N / size, size, size) bool, pairs whose kernel is 0 where False; None: all are compared.
    """
    pairs = torch.ones(size, size, dtype=torch.bool, device=x.device)
    if unbiased:
        pairs.fill_diagonal_(False)
    allowed = pairs if comparable is None else pairs & comparable.to(x.device)
    groups_x, groups_y = (states.reshape(-1, size, states[0].numel()) for states in (x, y))
    scale = expand_times(width, x).reshape(-1, size, 1)

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        square = (first.unsqueeze(2) - second.unsqueeze(1)).square().sum(3)
        return torch.exp(-square.clamp_min(1e-8).sqrt() / scale) * allowed

    each = kernel(groups_x, groups_x) + kernel(groups_y, groups_y) - 2 * kernel(groups_x, groups_y)
    return (each.sum(2) / (size - 1 if unbiased else size)).flatten()
