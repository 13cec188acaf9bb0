"""Score distillation: the distribution of one-step samples is pulled to the teacher's, at every noise level."""

import copy
from typing import Self, final

import torch
from torch import Tensor

from freeflow_baselines.config import ScoreDistillationConfig
from freeflow_baselines.pairs import EndPointLoss, end_point, end_point_loss, square_loss
from freeflow_core.interfaces import BuildContext, Teacher
from freeflow_core.interfaces.objective import Context, Models, Objective, Role
from freeflow_core.interfaces.student import AverageVelocityStudent, StartTimes, Student
from freeflow_core.math.flow import (
    expand_times,
    like_states,
    linear_interpolate,
    linear_velocity,
    mean_square,
    uniform_between,
)
from freeflow_core.objective_kit.jumps import guided_field, jumps_from_noise, root_mean_square
from freeflow_core.objective_kit.passes import Jumps, velocity_with_gradient, velocity_without_gradient
from freeflow_core.types import Batch, Draws, Loss, Losses, Progress

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
    DMD is ``critic_updates: 1``, ``regression_weight: 0.25`` with a perceptual ``distance``, ``critic_times: [0, 1]``
    and, on EDM's ImageNet, ``critic_weighting`` and ``time_distribution: edm``. Ours: the pairs of its regression start
    at the batch's own noise, made anew in every turn of the student instead of stored beforehand.

    Cost: 2F + B a step, and B + T more in a student's turn (4.8F a step with 5 critic updates; B = T = 2F); F more with
    ``critic_times``, and the teacher's path with the regression. Known failures: a fake velocity that lags behind;
    modes lost, since the KL is reverse. Left out is what makes DMD2: its discriminator on real data, and several steps
    by backward simulation. Ours: without ``critic_times`` one noising serves both the gradient and the critic.

    Random streams: ``prior``, ``guidance``, ``noise-level``, ``noise``; with ``critic_times`` the last two with the
    prefix ``critic-`` for the critic.
    """

    requires = AverageVelocityStudent
    start_times = StartTimes.PRIOR

    def __init__(self, config: ScoreDistillationConfig, regression: EndPointLoss = square_loss) -> None:
        self._config, self._regression = config, regression

    @classmethod
    def from_config(cls, config: ScoreDistillationConfig, context: BuildContext) -> Self:
        return cls(config, end_point_loss(config, context))

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        return {FAKE_VELOCITY: Role(copy.deepcopy(student), optimizer=self._config.fake_velocity_optimizer)}

    def losses(self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context) -> Losses:
        config, teacher, student = self._config, models.teacher, models["student"]
        jumps = jumps_from_noise(models, batch, draws, config)
        students_turn = (progress.step + 1) % config.critic_updates == 0
        ask = velocity_with_gradient if students_turn else velocity_without_gradient
        sample = jumps.x_t - ask(student, *jumps)

        # The samples noised: for the student's gradient, and for the fake velocity, whose level may be another.
        x = sample.detach()

        def noised(prefix: str, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
            noise = draws.noise(f"{prefix}noise", teacher.sample_shape)
            t = noise_levels(draws.uniform(f"{prefix}noise-level"), low, high, config.time_distribution)
            t = t.clamp(*teacher.time_range)
            return linear_interpolate(x, noise, t), t, noise

        def asked(x_t: Tensor, t: Tensor) -> Jumps:
            return Jumps(x_t, t, t, jumps.condition, jumps.guidance)

        own = config.critic_times
        x_t, t, noise = noised("", config.time_low, config.time_high) if own is None else noised("critic-", *own)
        v_fake = velocity_with_gradient(models[FAKE_VELOCITY], *asked(x_t, t))
        per_sample = mean_square(v_fake - linear_velocity(x, noise))
        if config.critic_weighting == "edm":
            # (sigma^-2 + sd^-2) ||D - x||^2 (Karras et al. 2022) of the denoiser D = x_t - t v, sigma = t / (1 - t).
            per_sample = per_sample * like_states((1 - t).square() + (t / config.data_std).square(), per_sample)
        losses = {FAKE_VELOCITY: Loss(per_sample)}
        if not students_turn:
            return losses

        # The student: a surrogate whose gradient in the sample is ``gradient`` over the number of dimensions.
        v_fake = v_fake.detach()
        if own is not None:
            x_t, t, _ = noised("", config.time_low, config.time_high)
            v_fake = velocity_without_gradient(models[FAKE_VELOCITY], *asked(x_t, t))
        v = guided_field(models, x_t, t, jumps, config)
        gradient = sample_gradient(x, x_t, t, v, v_fake, config)
        per_sample = 0.5 * mean_square(sample - (x - gradient))
        terms = {"score_residual": root_mean_square(v_fake - v), "gradient": root_mean_square(gradient)}
        if config.regression_weight:
            end = end_point(teacher, jumps.x_t, jumps.condition, jumps.guidance, config)
            missed = self._regression(sample, end)
            per_sample = per_sample + config.regression_weight * missed
            terms["regression_loss"] = missed.detach().mean()
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


def noise_levels(uniform: Tensor, low: float, high: float, distribution: str) -> Tensor:
    """Noise levels t in (0, 1), (N,) float64 on the host, from ``uniform`` (N,) in (0, 1)."""
    share = uniform_between(uniform, low, high)
    if distribution == "uniform":
        return share
    top, bottom = _SIGMA_MAX ** (1 / _RHO), _SIGMA_MIN ** (1 / _RHO)
    sigma = (bottom + share * (top - bottom)).pow(_RHO)
    return sigma / (1 + sigma)
