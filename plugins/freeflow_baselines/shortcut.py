"""Shortcut models: one step must equal two steps of half its size."""

import math
from typing import final

import torch
from torch import Tensor

from freeflow_baselines.config import ShortcutConfig
from freeflow_baselines.shared import TARGET, VelocityObjective, averaged_target, rows_from_data
from freeflow_core.interfaces import Context, Model, Models, Role, Student, Teacher
from freeflow_core.math.flow import average_velocity_jump, extrapolate, mean_square
from freeflow_core.objective_kit.jumps import guided_field, jumps_to, root_mean_square, velocities_with_gradient
from freeflow_core.objective_kit.passes import Jumps, own_velocities, take
from freeflow_core.objective_kit.rows import drop_labels
from freeflow_core.types import Batch, Draws, Guidance, Loss, Losses, Progress


@final
class Shortcut(VelocityObjective):
    """Flow matching on most rows, self-consistency on the rest (Frans et al. 2024, eq. 5).

    Flow-matching rows regress u(x_t, t, t - 1/M) on the velocity at t, a multiple of the smallest size 1/M, which
    stands for an instant. The others regress u(x_t, t, t-d) on (u1 + u2) / 2, u1 = u(x_t, t, t-d/2), x' = x_t - d/2 u1,
    u2 = u(x', t-d/2, t-d) from the averaged network, d = 1, 1/2, ..., 2/M in equal shares and t a multiple of d.

    velocity: data guides as the paper does (section 4.3): rows of the smallest d bootstrap from the guided
    velocity, larger ones inherit it, and dropped labels teach the unconditional one. velocity: teacher (ours) takes
    the guided teacher as the flow-matching target, and the bootstrap needs no guidance of its own.

    Fixed point: M Euler steps, O(1/M) from the exact map, before clipping; with velocity: data in the mean over data.
    Cost: F + B + 2F for the ``bootstrap_share``, and T for the others with velocity: teacher. Known failures: the
    error compounds over the doublings, and times off the grid are untrained; sample with powers of two.

    Random streams: ``shortcut-size``, ``grid-index``, ``noise``, ``guidance``, ``label-dropout``.
    """

    _config: ShortcutConfig

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        return averaged_target(student, self._config.target_halflife_images)

    def losses(self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context) -> Losses:
        config, student = self._config, models["student"]
        matching, bootstrap = draws.split(config.bootstrap_share)
        t, d = shortcut_times(draws, bootstrap, config.base_steps)
        rows = rows_from_data(batch, draws, t, config)
        jumps = jumps_to(t - d, rows)
        plain, doubled = jumps.take(matching), jumps.take(bootstrap)
        if config.velocity == "data":
            # Unguided rows: the network learns its own guidance in the bootstrap.
            kept, _ = drop_labels(plain.condition, student.bare.num_classes, config.label_dropout, draws.rows(matching))
            plain = plain._replace(condition=kept, guidance=torch.ones_like(plain.guidance))
            velocity = take(rows.velocity, matching)
        else:
            velocity = guided_field(models, plain.x_t, plain.t, plain, config)
        target = self._two_half_steps(models.get(TARGET, student), doubled)
        u, u_doubled = velocities_with_gradient(student, plain, doubled)
        first, second = u - velocity, u_doubled - target
        terms = {"flow_matching_residual": root_mean_square(first), "bootstrap_residual": root_mean_square(second)}
        return {"student": Loss(mean_square(torch.cat([first, second])), terms)}

    @torch.no_grad()
    def _two_half_steps(self, target: Model, jumps: Jumps) -> Tensor:
        """(u1 + u2) / 2, (N, *D), of the averaged network."""
        config, d, guidance = self._config, jumps.t - jumps.s, jumps.guidance
        weight = torch.ones_like(d)
        if config.velocity == "data":
            smallest = d == 2 / config.base_steps
            weight = torch.where(smallest, Guidance(guidance, *config.guidance_interval).at(jumps.t), 1.0)
            guidance = torch.where(smallest, 1.0, guidance)

        def velocity(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            guided = (weight != 1).nonzero().flatten()
            u, null = own_velocities(
                target, x, t, s, jumps.condition, guidance, conditional=torch.arange(len(t)), unconditional=guided
            )
            return extrapolate(u, null, guided, weight)

        middle = jumps.t - d / 2
        u1 = velocity(jumps.x_t, jumps.t, middle)
        x = self._clipped(average_velocity_jump(jumps.x_t, u1, jumps.t, middle))
        u2 = velocity(x, middle, jumps.s)
        return self._clipped((u1 + u2) / 2)

    def _clipped(self, values: Tensor) -> Tensor:
        clip = self._config.clip
        return values if clip is None else values.clamp(-clip, clip)


def shortcut_times(draws: Draws, bootstrap: Tensor, base_steps: int) -> tuple[Tensor, Tensor]:
    """Times t and step sizes d, (N,) float64 on the host.

    In the rows ``bootstrap`` (a host index) d = 1, 1/2, ..., 2/M alike often, 1/M elsewhere; t = 1 - j d, j < 1/d.
    """
    d = torch.full((len(draws.index),), 1 / base_steps, dtype=torch.float64)
    sizes = draws.integers("shortcut-size", int(math.log2(base_steps)))
    d[bootstrap] = 0.5 ** sizes[bootstrap].double()
    return 1 - (draws.uniform("grid-index") / d).floor() * d, d
