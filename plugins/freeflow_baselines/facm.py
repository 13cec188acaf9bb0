"""Flow-anchored consistency: a continuous consistency loss, held in place by flow matching on the same network."""

import math
from typing import final

import torch
from torch import Tensor

from freeflow_baselines.config import FACMConfig
from freeflow_baselines.shared import VelocityObjective, path_velocity, rows_from_data
from freeflow_core.interfaces import Context, Models, StartTimes
from freeflow_core.math.flow import expand_times, mean_square
from freeflow_core.objective_kit.jumps import jumps_to, root_mean_square, velocities_with_gradient
from freeflow_core.objective_kit.passes import path_derivative
from freeflow_core.types import Batch, Draws, Loss, Losses, Progress


@final
class FACM(VelocityObjective):
    """A consistency loss at s = 0 plus a flow-matching anchor at s = t (Peng et al. 2025).

    The published objective (section 3.2; losses.py of the authors' code) in our times. The consistency target is
    sg u - (1 - (1-t)^p) clamp(sg u - (v - t du/dt), +-1), its loss sin(pi t / 2) e / sg(e + c)^power with e a mean
    square; the anchor is the mean square of u(x_t, t, t) - v plus 1 - cosine over channels. The two tasks are told
    apart by the end time s (the paper's auxiliary time condition), which every student here has.

    Fixed point: u(x_t, t, 0) = v - t du/dt, the exact map, and u(x_t, t, t) = v; both terms are 0 there. With velocity:
    data single residuals do not vanish, and the clamp and the power shift the fixed point.
    Cost: T + 2 (F + B) + J. Known failures: it collapses without the anchor. The student jumps to data alone: several
    steps need fresh noise in between.

    Random streams: ``time``, ``noise``, ``guidance``.
    """

    start_times = StartTimes.ANY_TO_DATA
    _config: FACMConfig

    def losses(self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context) -> Losses:
        config, student = self._config, models["student"]
        t = facm_times(draws.uniform("time"), config.time_location, config.time_scale)
        zero = torch.zeros_like(t)
        rows = rows_from_data(batch, draws, t, config)
        jumps, v = jumps_to(zero, rows), path_velocity(models, rows, config)
        u, anchor = velocities_with_gradient(student, jumps, jumps_to(t, rows))

        # The consistency loss: u moves a share of the way to v - t du/dt.
        du_dt = path_derivative(student, jumps, v, value=u, options=config)
        residual = u.detach() - (v - expand_times(t, u) * du_dt)
        relaxed = expand_times(1 - (1 - t).pow(config.relaxation_power), u)
        target = u.detach() - relaxed * residual.clamp(-config.tangent_clip, config.tangent_clip)
        square = mean_square(u - target)
        weight = (square.detach() + config.weight_epsilon).pow(-config.weight_power)
        shortcut = (math.pi / 2 * t).sin().to(square) * weight * square

        # The anchor: flow matching at s = t.
        anchored = mean_square(anchor - v) + config.cosine_weight * _cosine_distance(anchor, v)
        terms = {
            "shortcut_loss": shortcut.detach().mean(),
            "anchor_loss": anchored.detach().mean(),
            "consistency_residual": root_mean_square(residual),
        }
        return {"student": Loss(shortcut + config.anchor_weight * anchored, terms)}


def facm_times(uniform: Tensor, location: float, scale: float) -> Tensor:
    """t = 2/pi atan(exp(N(location, scale))), (N,) float64 in (0, 1): the paper's, with t = 1 the noise."""
    return 2 / math.pi * torch.atan(torch.exp(location + scale * torch.special.ndtri(uniform)))


def _cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """1 - cosine over the channels (dimension 1), mean over the rest: (N,)."""
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=1)
    return 1 - cosine.reshape(len(first), -1).mean(1)
