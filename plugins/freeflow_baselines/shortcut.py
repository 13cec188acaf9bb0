"""Shortcut models: one step must equal two steps of half its size."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Self, final

import torch
from torch import Tensor

from freeflow_baselines.config import ShortcutConfig
from freeflow_baselines.rows import PathRows, noised_rows, path_velocity, root_mean_square
from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import (
    AverageVelocityStudent,
    BuildContext,
    Context,
    Model,
    Models,
    Objective,
    Role,
    StartTimes,
    Student,
    Teacher,
)
from freeflow_core.math.flow import average_velocity_jump, expand_times, mean_square
from freeflow_core.objective_kit.passes import velocity_with_gradient, velocity_without_gradient
from freeflow_core.objective_kit.rows import drop_labels
from freeflow_core.types import (
    Batch,
    Condition,
    Draws,
    Guidance,
    Loss,
    Progress,
    concatenate_conditions,
    index_condition,
)

TARGET = "target"


@final
class Shortcut(Objective):
    """Flow matching on most rows, self-consistency on the rest (Frans et al. 2024, arXiv 2410.12557, eq. 5).

    Flow-matching rows regress u(x_t, t, t) on the velocity, t on the grid of ``base_steps`` M. The others regress
    u(x_t, t, t-d) on (u1 + u2) / 2, with u1 = u(x_t, t, t-d/2), x' = x_t - d/2 u1, u2 = u(x', t-d/2, t-d) from the
    averaged network, d = 1, 1/2, ..., 2/M in equal shares and t a multiple of d. Ours: the paper's network knows sizes
    as tokens and takes the smallest for an instant; here the size is t - s, so the instant is s = t itself.

    velocity: data guides as the paper does (section 4.3): rows of the smallest d bootstrap from the guided
    velocity, larger ones inherit it, and dropped labels teach the unconditional one. velocity: teacher (ours) takes
    the guided teacher as the flow-matching target, and the bootstrap needs no guidance of its own.

    Fixed point: the exact map, in both kinds of rows (before clipping, and with velocity: data in the mean over data).
    Cost: F + B + 2F for the ``bootstrap_share``, and T for the others with velocity: teacher. Known failures: the
    error compounds over the doublings, and times off the grid are untrained; sample with powers of two.

    Random streams: ``shortcut-size``, ``grid-index``, ``noise``, ``guidance``, ``label-dropout``.
    """

    needs_data = True
    requires = AverageVelocityStudent
    start_times = StartTimes.ANY

    def __init__(self, config: ShortcutConfig) -> None:
        self._config = config
        self.needs_teacher = config.velocity == "teacher"

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, ShortcutConfig)
        return cls(config)

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        """The averaged network that gives bootstrap targets, which no gradient trains."""
        halflife = self._config.target_halflife_images
        if halflife is None:
            return {}
        return {
            TARGET: Role(copy.deepcopy(student), trainable=False, follows="student", follow_halflife_images=halflife)
        }

    def losses(
        self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context
    ) -> dict[str, Loss]:
        config, student = self._config, models["student"]
        matching, bootstrap = draws.split(config.bootstrap_share)
        t, d = shortcut_times(draws, bootstrap, config.base_steps)
        rows = noised_rows(models, batch, draws, t, config)
        plain, doubled, size = rows.take(matching), rows.take(bootstrap), d[bootstrap]
        if config.velocity == "data":
            # Unguided rows: the network learns its own guidance in the bootstrap.
            labels, _ = drop_labels(
                plain.condition, student.bare.num_classes, config.label_dropout, draws.rows(matching)
            )
            plain = replace(plain, condition=labels, guidance=torch.ones_like(plain.guidance))
        velocity = path_velocity(models, plain, config)
        doubled_target = self._bootstrap(models.get(TARGET, student), doubled, size)
        u = velocity_with_gradient(
            student,
            torch.cat([plain.x_t, doubled.x_t]),
            torch.cat([plain.t, doubled.t]),
            torch.cat([plain.t, doubled.t - size]),
            concatenate_conditions(plain.condition, doubled.condition),
            torch.cat([plain.guidance, doubled.guidance]),
        )
        difference = u - torch.cat([velocity, doubled_target])
        terms = {
            "flow_matching_residual": root_mean_square(difference[: len(matching)]),
            "bootstrap_residual": root_mean_square(difference[len(matching) :]),
        }
        return {"student": Loss(mean_square(difference), terms)}

    @torch.no_grad()
    def _bootstrap(self, target: Model, rows: PathRows, d: Tensor) -> Tensor:
        """(u1 + u2) / 2 of two half steps, (N, *D)."""
        half, guidance, weight = d / 2, rows.guidance, torch.ones_like(rows.t)
        if self._config.velocity == "data":
            smallest = d == 2 / self._config.base_steps
            weight = torch.where(smallest, Guidance(guidance, *self._config.guidance_interval).at(rows.t), 1.0)
            guidance = torch.where(smallest, 1.0, guidance)
        middle = rows.t - half
        u1 = _guided(target, rows.x_t, rows.t, middle, rows.condition, guidance, weight)
        x = self._clipped(average_velocity_jump(rows.x_t, u1, rows.t, middle))
        u2 = _guided(target, x, middle, rows.t - d, rows.condition, guidance, weight)
        return self._clipped((u1 + u2) / 2)

    def _clipped(self, values: Tensor) -> Tensor:
        clip = self._config.clip
        return values if clip is None else values.clamp(-clip, clip)


def shortcut_times(draws: Draws, bootstrap: Tensor, base_steps: int) -> tuple[Tensor, Tensor]:
    """Times t and step sizes d, (N,) float64 on the host; d is 0 outside the rows ``bootstrap`` (a host index).

    d = 1, 1/2, ..., 2/M alike often and t = 1 - j d; elsewhere t = 1 - j / M, with j below 1/d and M.
    """
    size = torch.zeros(len(draws.index), dtype=torch.float64)
    sizes = draws.integers("shortcut-size", int(math.log2(base_steps)))
    size[bootstrap] = 0.5 ** sizes[bootstrap].double()
    grid = torch.where(size > 0, size, 1 / base_steps)
    return 1 - (draws.uniform("grid-index") / grid).floor() * grid, size


def _guided(
    model: Model, x: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor, weight: Tensor
) -> Tensor:
    """u_null + w (u_c - u_null), in one call; the unconditional half holds only rows whose ``weight`` is not 1."""
    rows = (weight != 1).nonzero().flatten()
    if rows.numel() == 0:
        return velocity_without_gradient(model, x, t, s, condition, guidance)
    chosen = index_condition(condition, rows)
    if not isinstance(chosen, Tensor) or model.bare.num_classes is None:
        raise ConfigError(
            "Guidance from data needs class labels and a student with classes, whose null class is the unconditional "
            "velocity. Leave objective.guidance_min and guidance_max at 1, or use velocity: teacher."
        )
    on = rows.to(x.device, non_blocking=True)
    both = velocity_without_gradient(
        model,
        torch.cat([x, x[on]]),
        torch.cat([t, t[rows]]),
        torch.cat([s, s[rows]]),
        concatenate_conditions(condition, torch.full_like(chosen, model.bare.num_classes)),
        torch.cat([guidance, torch.ones_like(guidance[rows])]),
    )
    conditional, unconditional = both[: len(x)], both[len(x) :]
    scale = expand_times(weight[rows], unconditional)
    return conditional.index_copy(0, on, torch.lerp(unconditional, conditional[on], scale))
