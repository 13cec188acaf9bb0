"""Score distillation: the distribution of one-step samples is pulled to the teacher's, at every noise level."""

from __future__ import annotations

import copy
from typing import final

import torch
from torch import Tensor

from freeflow_baselines.config import ScoreDistillationConfig
from freeflow_core.interfaces.objective import Context, Models, Objective, Role
from freeflow_core.interfaces.student import AverageVelocityStudent, StartTimes, Student
from freeflow_core.interfaces.teacher import Teacher
from freeflow_core.math.flow import expand_times, linear_interpolate, linear_velocity, mean_square, uniform_between
from freeflow_core.objective_kit.jumps import guided_field, jumps_from_noise, root_mean_square
from freeflow_core.objective_kit.passes import velocity_with_gradient, velocity_without_gradient
from freeflow_core.types import Batch, Draws, Loss, Progress

FAKE_VELOCITY = "fake_velocity"
_RHO, _SIGMA_MIN, _SIGMA_MAX = 7.0, 0.002, 80.0


@final
class ScoreDistillation(Objective):
    """min KL(student's samples || teacher's), noised to every level, by a trained velocity of the student's samples.

    A sample x = X(z, 1, 0) moves along -w (v - v_fake)(x_t, t), which is a positive multiple of s_teacher - s_fake for
    the scores s = -(x_t + (1 - t) v) / t: the gradient of that KL (Wang et al. 2023, VSD, eq. 9; Luo
    et al. 2023, Diff-Instruct; Yin et al. 2023, DMD, eq. 7 and 8). The fake
    velocity, a copy of the student with the teacher's weights, learns flow matching on the samples in every step, the
    student takes its turn once in ``critic_updates`` steps (DMD2's two time scales, Yin et al. 2024).

    Fixed point: samples distributed as the teacher's, given an exact fake velocity; which noise leads where is free.
    Cost: 2F + B a step, and B + T more in a student's turn (4.8F a step with 5 critic updates; B = T = 2F). Known
    failures: a fake velocity that lags behind; modes lost, since the KL is reverse. Left out: DMD's regression on pairs
    (the objective ``pairs`` is that term alone), and what makes DMD2: its discriminator on real data, and several steps
    by backward simulation. Ours: one noising serves both the gradient and the critic.

    Random streams: ``prior``, ``guidance``, ``noise-level``, ``noise``.
    """

    requires = AverageVelocityStudent
    start_times = StartTimes.PRIOR

    def __init__(self, config: ScoreDistillationConfig) -> None:
        self._config = config

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        return {FAKE_VELOCITY: Role(copy.deepcopy(student), optimizer=self._config.fake_velocity_optimizer)}

    def losses(
        self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context
    ) -> dict[str, Loss]:
        config, teacher, student = self._config, models.teacher, models["student"]
        jumps = jumps_from_noise(models, batch, draws, config)
        students_turn = (progress.step + 1) % config.critic_updates == 0
        ask = velocity_with_gradient if students_turn else velocity_without_gradient
        sample = jumps.x_t - ask(student, *jumps)

        # The fake velocity: flow matching on the samples.
        x, noise = sample.detach(), draws.noise("noise", teacher.sample_shape)
        t = noise_levels(draws.uniform("noise-level"), config).clamp(*teacher.time_range)
        x_t = linear_interpolate(x, noise, t)
        v_fake = velocity_with_gradient(models[FAKE_VELOCITY], x_t, t, t, jumps.condition, jumps.guidance)
        losses = {FAKE_VELOCITY: Loss(mean_square(v_fake - linear_velocity(x, noise)))}
        if not students_turn:
            return losses

        # The student: a surrogate whose gradient in the sample is ``gradient`` over the number of dimensions.
        v = guided_field(models, x_t, t, jumps, config)
        gradient = sample_gradient(x, x_t, t, v, v_fake.detach(), config)
        per_sample = 0.5 * mean_square(sample - (x - gradient))
        terms = {"score_residual": root_mean_square(v_fake - v), "gradient": root_mean_square(gradient)}
        return {**losses, "student": Loss(per_sample, terms)}


@torch.no_grad()
def sample_gradient(
    x: Tensor, x_t: Tensor, t: Tensor, v: Tensor, v_fake: Tensor, config: ScoreDistillationConfig
) -> Tensor:
    """w (v - v_fake), (N, *D): what a sample x descends along.

    dmd: x_0(fake) - x_0(teacher) = t (v - v_fake), over the mean absolute x - x_0(teacher) of each sample (Yin et al.
    2023, eq. 8). vsd: sigma^2 (e_teacher - e_fake) up to sign, of the predicted noises e = x_t + (1 - t) v, with sigma
    of the variance-preserving path of equal signal-to-noise (Wang et al. 2023). A sample without a finite gradient gets
    none.

    Args:
        x, x_t: (N, *D) samples and their noised states.
        t: (N,) levels on the host.
        v, v_fake: (N, *D) both fields at x_t.
    """
    difference = v - v_fake
    time = expand_times(t, x)
    if config.weighting == "velocity":
        return difference
    if config.weighting == "vsd":
        return time.square() / (time.square() + (1 - time).square()) * (1 - time) * difference
    distance = (x - (x_t - time * v)).abs().flatten(1).mean(1)
    return torch.nan_to_num(time * difference / expand_times(distance, x), nan=0.0, posinf=0.0, neginf=0.0)


def noise_levels(uniform: Tensor, config: ScoreDistillationConfig) -> Tensor:
    """Noise levels t in (0, 1), (N,) float64 on the host, from ``uniform`` (N,) in (0, 1)."""
    share = uniform_between(uniform, config.time_low, config.time_high)
    if config.time_distribution == "uniform":
        return share
    low, high = _SIGMA_MIN ** (1 / _RHO), _SIGMA_MAX ** (1 / _RHO)
    sigma = (low + share * (high - low)).pow(_RHO)
    return sigma / (1 + sigma)
