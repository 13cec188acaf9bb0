"""Improved MeanFlow: the tangent is the network's own velocity, so that no label noise enters the derivative."""

import math
from typing import final

import torch
from torch import Tensor

from freeflow_core.interfaces import Models
from freeflow_core.math.flow import uniform_between
from freeflow_core.objective_kit.passes import take
from freeflow_core.objective_kit.rows import NoisyRows
from freeflow_core.types import Draws
from freeflow_meanflow.config import ImprovedMeanFlowConfig
from freeflow_meanflow.step import Field, MeanFlowStep, mix_guided, velocities_now


@final
class ImprovedMeanFlow(MeanFlowStep):
    """V = u + (t - s) sg(du/dt) regresses on the data's velocity (Geng et al. 2025).

    The derivative runs along the network's own velocity u(x_t, t, t) instead of n - x, which makes V a function of x_t
    alone and the loss a plain regression. Guided, the target is n - x + (1 - 1/w) (u_c - u_null) with the network's
    own u_c = u(x_t, t, t | c, w), u_null = u(x_t, t, t | null, 1), and the fixed point u_c = w v_c + (1 - w) v_null:
    the mixture of MeanFlow with kappa = 1 - 1/w, drawn anew each time. Ours: the boundary u(x_t, t, t) serves as the
    velocity instead of an auxiliary head, the s = t rows train it, and the guidance interval is fixed, not an input.

    Fixed point: the exact average velocity in the mean over data; the power p > 0 shifts it, least in high dimension.
    Cost with the share m = 1 - ``instant_share``: F + B + m (J + F), and 2F for guided rows. From data alone: with a
    teacher's velocity its gradient would be MeanFlow's. Known failure: without the stop-gradient it is second order.
    """

    needs_teacher = False

    def __init__(self, config: ImprovedMeanFlowConfig) -> None:
        super().__init__(config)
        self._config = config

    def draw_guidance(self, draws: Draws) -> Tensor:
        uniform, low, high = draws.uniform("guidance"), self._config.guidance_min, self._config.guidance_max
        if self._config.guidance_distribution == "uniform" or low == high:
            return uniform_between(uniform, low, high)
        return torch.exp(uniform_between(uniform, math.log(low), math.log(high)))

    def field(self, models: Models, rows: NoisyRows, weight: Tensor, moving: Tensor) -> Field:
        guided = weight != 1
        moves = torch.zeros_like(guided).index_fill(0, moving, True)
        asked, null = (guided | moves).nonzero().flatten(), guided.nonzero().flatten()
        u_c, u_null = velocities_now(models["student"], rows, asked, null)
        tangent = take(u_c, moves[asked].nonzero().flatten())
        if not len(null):
            return Field(rows.velocity, tangent)
        u_guided = take(u_c, guided[asked].nonzero().flatten())
        return Field(mix_guided(rows, null, weight[null], 1 - 1 / weight[null], u_guided, u_null), tangent)
