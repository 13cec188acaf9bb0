"""Improved MeanFlow: the tangent is the network's own velocity, so that no label noise enters the derivative."""

from __future__ import annotations

import math
from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import BuildContext, Models
from freeflow_core.math.flow import uniform_between
from freeflow_core.objective_kit.passes import check_derivative
from freeflow_core.types import Draws
from freeflow_meanflow.config import ImprovedMeanFlowConfig
from freeflow_meanflow.own_velocity import mix_guided, own_velocities
from freeflow_meanflow.rows import Rows
from freeflow_meanflow.step import Field, MeanFlowStep


@final
class ImprovedMeanFlow(MeanFlowStep):
    """V = u + (t - s) sg(du/dt) regresses on the data's velocity (Geng et al. 2025, arXiv 2512.02012).

    The derivative runs along the network's own velocity u(x_t, t, t) instead of n - x, which makes V a function of x_t
    alone and the loss a plain regression. Guided, the target is n - x + (1 - 1/w) (u_c - u_null) with the network's
    own u_c = u(x_t, t, t | c, w), u_null = u(x_t, t, t | null, 1), and the fixed point u_c = w v_c + (1 - w) v_null:
    the mixture of MeanFlow with kappa = 1 - 1/w, drawn anew each time. Ours: the boundary u(x_t, t, t) serves as the
    velocity instead of an auxiliary head, the s = t rows train it, and the guidance interval is fixed, not an input.

    Fixed point: the exact average velocity in the mean over data; the power p > 0 shifts it, least in high dimension.
    Cost with the share m = 1 - ``instant_share``: F + B + m (J + F), and 2F for guided rows. From data alone: with a
    teacher's velocity its gradient would be MeanFlow's. Known failure: without the stop-gradient it is second order.

    Random streams: ``guidance``, ``time``, ``end-time``, ``noise``, ``label-dropout``.
    """

    needs_teacher = False

    def __init__(self, config: ImprovedMeanFlowConfig) -> None:
        super().__init__(config)
        self._config = config

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, ImprovedMeanFlowConfig)
        check_derivative(config.derivative, context)
        return cls(config)

    def draw_guidance(self, draws: Draws) -> Tensor:
        uniform, low, high = draws.uniform("guidance"), self._config.guidance_min, self._config.guidance_max
        if self._config.guidance_distribution == "uniform" or low == high:
            return uniform_between(uniform, low, high)
        return torch.exp(uniform_between(uniform, math.log(low), math.log(high)))

    def dropout(self) -> float:
        return self._config.label_dropout

    def field(self, models: Models, rows: Rows) -> Field:
        guided = rows.weight != 1
        moving = torch.zeros_like(guided).index_fill(0, rows.moving, True)
        asked, null = (guided | moving).nonzero().flatten(), guided.nonzero().flatten()
        u_c, u_null = own_velocities(models["student"], rows, asked, null)
        of_moving = moving[asked].nonzero().flatten().to(u_c.device, non_blocking=True)
        if not len(null):
            return Field(rows.velocity, u_c[of_moving])
        of_guided = guided[asked].nonzero().flatten().to(u_c.device, non_blocking=True)
        mixing = 1 - 1 / rows.weight[null]
        return Field(mix_guided(rows, null, mixing, u_c[of_guided], u_null), u_c[of_moving])
