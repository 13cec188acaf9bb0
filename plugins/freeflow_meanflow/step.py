"""One training step: one gradient pass, one derivative of the rows with s < t, one question for the velocity."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.interfaces import AverageVelocityStudent, BuildContext, Context, Model, Models, Objective
from freeflow_core.math.flow import expand_times, logit_normal
from freeflow_core.objective_kit.jumps import jumps_to
from freeflow_core.objective_kit.passes import (
    asked_rows,
    check_derivative,
    own_velocities,
    path_derivative,
    take,
    velocity_with_gradient,
)
from freeflow_core.objective_kit.rows import NoisyRows, drop_labels, noisy_rows
from freeflow_core.types import Batch, Draws, Guidance, Loss, Losses, Progress
from freeflow_meanflow.config import MeanFlowOptions


@final
@dataclass(frozen=True)
class Field:
    """What the average velocity is made to follow, without gradient.

    Args:
        velocity: (N, *D) v of the identity.
        tangent: (M, *D) direction dx_t/dt of the derivative, in the M rows with s < t.
    """

    velocity: Tensor
    tangent: Tensor


class MeanFlowStep(Objective):
    """The MeanFlow identity u + (t - s) du/dt = v as a regression (Geng et al. 2025, eqs. 6 to 10).

    du/dt is the total derivative along the tangent, u's target is detached, and rows with s = t are flow matching.
    The loss of a row is E / sg(E + c)^p with E the sum of squares over dimensions (section 4.3, eq. 22).

    Random streams: ``guidance``, ``time``, ``end-time``, ``noise``, ``label-dropout``.
    """

    needs_data = True
    requires = AverageVelocityStudent

    def __init__(self, options: MeanFlowOptions) -> None:
        self._options = options

    @classmethod
    def from_config(cls, config: MeanFlowOptions, context: BuildContext) -> Self:
        check_derivative(config.derivative, context)
        return super().from_config(config, context)

    @abstractmethod
    def draw_guidance(self, draws: Draws) -> Tensor:
        """One weight g a row, (N,) float64 on the host."""

    @abstractmethod
    def field(self, models: Models, rows: NoisyRows, weight: Tensor, moving: Tensor) -> Field:
        """The velocity to follow, and the tangent.

        Args:
            models: the student, and the teacher where there is one.
            rows: N rows; their ``guidance`` is the network's input.
            weight: (N,) the same inside ``guidance_interval``, 1 outside: how the velocity is guided.
            moving: host index of the rows with s < t.
        """

    def dropout(self) -> float:
        return self._options.label_dropout

    def warmup(self, progress: Progress) -> float:
        """Factor of (t - s) du/dt, in [0, 1]."""
        return 1.0

    @final
    def losses(self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context) -> Losses:
        student, options = models["student"], self._options
        t, s, moving = time_pairs(draws, options)
        rows = noisy_rows(batch, draws, t, self.draw_guidance(draws))
        condition, dropped = drop_labels(rows.condition, student.bare.num_classes, self.dropout(), draws)
        rows = replace(rows, condition=condition, guidance=rows.guidance.masked_fill(dropped, 1.0))

        field = self.field(models, rows, Guidance(rows.guidance, *options.guidance_interval).at(t), moving)
        u = velocity_with_gradient(student, *jumps_to(s, rows))
        with torch.no_grad():
            # target = v - (t - s) du/dt; rows with s = t need no derivative.
            on = moving.to(u.device, non_blocking=True)
            along = self._derivative(student, rows, s, moving, field.tangent, u) * self.warmup(progress)
            target = field.velocity.index_add(0, on, -expand_times((t - s)[moving], along) * along)
        square = (u - target).square().flatten(1).sum(1)
        weight = (square.detach() + options.weight_epsilon).pow(-options.weight_power)
        mean = square.detach() / u[0].numel()
        terms = {
            "residual": mean.mean().sqrt(),
            "moving_residual": mean[on].mean().sqrt() if len(on) else mean.new_zeros(()),
            "weight_mean": weight.mean(),
        }
        return {"student": Loss(weight * square, terms)}

    def _derivative(
        self, student: Model, rows: NoisyRows, s: Tensor, moving: Tensor, tangent: Tensor, u: Tensor
    ) -> Tensor:
        """du/dt (M, *D) along the tangent, in the rows that move."""
        asked = asked_rows(moving, student.is_divided)
        if not len(asked):
            return tangent
        jumps, along = jumps_to(s[asked], rows.take(asked)), tangent if len(moving) else take(rows.velocity, asked)
        return path_derivative(student, jumps, along, value=take(u, asked), options=self._options)[: len(moving)]


def time_pairs(draws: Draws, config: MeanFlowOptions) -> tuple[Tensor, Tensor, Tensor]:
    """t, s (N,) float64 with s <= t, and the host index of the rows with s < t.

    Two logit-normal draws, sorted, and s = t in ``instant_share`` of the rows (Geng et al. 2025, section 4.3, table
    1a); or, with ``end_location``, s of a distribution of its own, held below t.
    """
    first = logit_normal(draws.uniform("time"), config.time_location, config.time_scale)
    end = draws.uniform("end-time")
    if config.end_location is None:
        second = logit_normal(end, config.time_location, config.time_scale)
        t, s = torch.maximum(first, second), torch.minimum(first, second)
    else:
        scale = config.time_scale if config.end_scale is None else config.end_scale
        t = first
        s = torch.minimum(logit_normal(end, config.end_location, scale), t)
    moving, instant = draws.split(config.instant_share)
    s = s.index_copy(0, instant, t[instant])
    return t, s, moving[s[moving] < t[moving]]


def velocities_now(model: Model, rows: NoisyRows, conditional: Tensor, unconditional: Tensor) -> tuple[Tensor, Tensor]:
    """u(x_t, t, t | c, g) and u(x_t, t, t | null, 1) of the given host rows: they take a guided teacher's place."""
    x_t, t = rows.x_t, rows.t
    return own_velocities(
        model, x_t, t, t, rows.condition, rows.guidance, conditional=conditional, unconditional=unconditional
    )


def mix_guided(
    rows: NoisyRows, guided: Tensor, weight: Tensor, mixing: Tensor, conditional: Tensor, unconditional: Tensor
) -> Tensor:
    """omega (n - x) + (1 - omega - kappa) u_null + kappa u_c in the ``guided`` rows, n - x elsewhere, (N, *D).

    MeanFlow's improved guidance (Geng et al. 2025, eqs. 20 and 21), with omega = w (1 - kappa), so that w is the
    effective weight: where u_c is its own target, u_c = w v_c + (1 - w) v_null.

    Args:
        rows: N rows.
        guided: host index of the rows to guide, with
        weight: (n,) w, and
        mixing: (n,) kappa.
        conditional, unconditional: (n, *D) the network's own velocities there.
    """
    omega, kappa = expand_times(weight * (1 - mixing), conditional), expand_times(mixing, conditional)
    mixed = omega * take(rows.velocity, guided) + (1 - omega - kappa) * unconditional + kappa * conditional
    return rows.velocity.index_copy(0, guided.to(mixed.device, non_blocking=True), mixed)
