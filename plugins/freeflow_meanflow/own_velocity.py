"""Guidance learnt from data: the network's own velocities at s = t take the place of a guided teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Model
from freeflow_core.math.flow import expand_times
from freeflow_core.objective_kit.passes import velocity_without_gradient
from freeflow_core.types import concatenate_conditions, index_condition
from freeflow_meanflow.rows import Rows


@torch.no_grad()
def own_velocities(model: Model, rows: Rows, conditional: Tensor, unconditional: Tensor) -> tuple[Tensor, Tensor]:
    """u(x_t, t, t | c, g) and u(x_t, t, t | null, 1) of the given host rows, in one call.

    Raises:
        ConfigError: unconditional rows where the student or the data has no classes.
    """
    if not len(unconditional):
        if not len(conditional):
            return rows.x_t[:0], rows.x_t[:0]
        on = conditional.to(rows.x_t.device, non_blocking=True)
        t, g = rows.t[conditional], rows.guidance[conditional]
        condition = index_condition(rows.condition, conditional)
        return velocity_without_gradient(model, rows.x_t[on], t, t, condition, g), rows.x_t[:0]
    labels = index_condition(rows.condition, unconditional)
    if not isinstance(labels, Tensor) or model.bare.num_classes is None:
        raise ConfigError(
            "Guidance from data needs class labels and a student with classes, whose null class is the unconditional "
            "velocity. Leave objective.guidance_min and guidance_max at 1, or take the velocity from a teacher."
        )
    chosen = torch.cat([conditional, unconditional])
    on = chosen.to(rows.x_t.device, non_blocking=True)
    t, guidance = rows.t[chosen], rows.guidance[chosen]
    guidance[len(conditional) :] = 1.0
    null = torch.full_like(labels, model.bare.num_classes)
    condition = concatenate_conditions(index_condition(rows.condition, conditional), null)
    u = velocity_without_gradient(model, rows.x_t[on], t, t, condition, guidance)
    return u[: len(conditional)], u[len(conditional) :]


def mix_guided(rows: Rows, guided: Tensor, mixing: Tensor, conditional: Tensor, unconditional: Tensor) -> Tensor:
    """omega (n - x) + (1 - omega - kappa) u_null + kappa u_c in the ``guided`` rows, n - x elsewhere, (N, *D).

    MeanFlow's improved guidance (Geng et al. 2025, arXiv 2505.13447, eqs. 20 and 21), with omega = w (1 - kappa), so
    that w is the effective weight: where u_c is its own target, u_c = w v_c + (1 - w) v_null.

    Args:
        rows: with ``weight`` w.
        guided: host index of the rows to guide.
        mixing: (n,) kappa of those rows.
        conditional, unconditional: (n, *D) the network's own velocities there.
    """
    omega = expand_times(rows.weight[guided] * (1 - mixing), conditional)
    kappa = expand_times(mixing, conditional)
    on = guided.to(rows.x_t.device, non_blocking=True)
    mixed = omega * rows.velocity[on] + (1 - omega - kappa) * unconditional + kappa * conditional
    return rows.velocity.index_copy(0, on, mixed)
