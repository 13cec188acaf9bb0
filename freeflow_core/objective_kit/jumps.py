"""Jumps of a student from data or noise, several asked for in one pass; the teacher's guided field beside."""

import functools

import torch
from torch import Tensor, nn

from freeflow_core.interfaces import Model, Models
from freeflow_core.math.flow import like_states, uniform_between
from freeflow_core.objective_kit.options import GuidanceOptions
from freeflow_core.objective_kit.passes import Jumps, teacher_velocity, velocity_with_gradient
from freeflow_core.objective_kit.rows import NoisyRows
from freeflow_core.types import Batch, Draws, Guidance, concatenate_conditions


def joined(*jumps: Jumps) -> Jumps:
    """All as one batch, in turn."""
    return Jumps(
        torch.cat([part.x_t for part in jumps]),
        torch.cat([part.t for part in jumps]),
        torch.cat([part.s for part in jumps]),
        functools.reduce(concatenate_conditions, [part.condition for part in jumps]),
        torch.cat([part.guidance for part in jumps]),
    )


def jumps_to(s: Tensor, rows: NoisyRows) -> Jumps:
    """From each row to its end time ``s`` (N,)."""
    return Jumps(rows.x_t, rows.t, s, rows.condition, rows.guidance)


def jumps_from_noise(models: Models, batch: Batch, draws: Draws, config: GuidanceOptions) -> Jumps:
    """Jumps from t = 1 to s = 0; streams ``prior``, ``guidance``, and the teacher's own for its conditions."""
    z, guidance = draws.noise("prior", models.teacher.sample_shape), draw_guidance(draws, config)
    condition = models.teacher.sample_condition(draws) if batch.condition is None else batch.condition
    return Jumps(z, torch.ones_like(guidance), torch.zeros_like(guidance), condition, guidance)


def draw_guidance(draws: Draws, config: GuidanceOptions) -> Tensor:
    """One weight g per row, (N,) float64 on the host; stream ``guidance``."""
    return uniform_between(draws.uniform("guidance"), config.guidance_min, config.guidance_max)


def guided_field(models: Models, x_t: Tensor, t: Tensor, asked: Jumps | NoisyRows, config: GuidanceOptions) -> Tensor:
    """The teacher's field (N, *D) at states ``x_t`` with the conditions and weights of ``asked``: one call.

    Guided inside ``guidance_interval``, without gradient.
    """
    weight = Guidance(asked.guidance, *config.guidance_interval).at(t)
    return teacher_velocity(models.teacher, x_t, t, asked.condition, weight)


def raw_output(network: nn.Module, jumps: Jumps) -> Tensor:
    """What a student's network says of the jumps, on their device and in the network's precision."""
    x_t, t, s, condition, guidance = jumps
    output: Tensor = network(x_t, like_states(t, x_t), like_states(s, x_t), condition, like_states(guidance, x_t))
    return output


def velocities_with_gradient(student: Model, *jumps: Jumps) -> tuple[Tensor, ...]:
    """u of each, in one gradient pass, as distributed training needs."""
    return torch.split(velocity_with_gradient(student, *joined(*jumps)), [len(part.t) for part in jumps])


def root_mean_square(values: Tensor) -> Tensor:
    """0-d, detached: for logging."""
    return values.detach().float().square().mean().sqrt()
