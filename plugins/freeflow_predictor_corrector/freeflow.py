"""FreeFlow: prediction, correction, and both on one batch, in the order of the paper's algorithm.

Tong, Ma, Xie, Jaakkola: Flow Map Distillation Without Data (2025). The README has the formulas in words.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Self, final

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import (
    AverageVelocityStudent,
    BuildContext,
    Context,
    Models,
    Objective,
    ObjectiveInParts,
    Role,
    StartTimes,
    StatefulObjective,
    Student,
    Teacher,
)
from freeflow_core.math.derivative import relative_error
from freeflow_core.math.flow import (
    average_velocity_jump,
    like_states,
    linear_interpolate,
    linear_velocity,
    mean_square,
    uniform_between,
)
from freeflow_core.objective_kit.options import DerivativeOptions
from freeflow_core.objective_kit.passes import (
    Jumps,
    check_derivative,
    duration_derivative,
    teacher_velocity,
    velocity_with_gradient,
    velocity_without_gradient,
)
from freeflow_core.types import Batch, Draws, Guidance, Loss, Progress, index_condition
from freeflow_predictor_corrector.config import CorrectionConfig, FreeFlowConfig, GuidanceConfig, PredictionConfig
from freeflow_predictor_corrector.correction import Correction, balance, correct, corrector_weights, noise_levels
from freeflow_predictor_corrector.prediction import Prediction, durations, predict

FAKE_VELOCITY = "fake_velocity"
SIGNAL_LEVELS = 8
"""Equal parts of [0, 1] by which the signal of the correction is measured."""


@dataclass(frozen=True)
class _Asked:
    """What the networks gave for one micro-batch, before the halves are balanced.

    Args:
        losses, terms: those that need no balance.
        back: the C correction rows' jumps, to ask the student for them again.
        u_back: (C, *D) the student's velocities there.
    """

    predicted: Prediction | None
    corrected: Correction | None
    losses: dict[str, Loss]
    terms: dict[str, Tensor]
    back: Jumps
    u_back: Tensor


class PredictorCorrector(Objective):
    """The step of the three objectives: how rows are split and how the halves are balanced is theirs to say.

    One student pass, one teacher call, one derivative, one fake-velocity pass. Random streams: ``prior``, ``guidance``,
    ``duration``, ``noise-level``, ``correction-noise``, and the teacher's own for conditions. The student's
    ``per_sample`` (N,) holds prediction rows first, then correction rows; since its mean over all rows is minimised,
    each half counts by its share of the batch.

    Args:
        options: that both halves share.
        prediction: None for correction alone.
        correction: None for prediction alone; then there is no fake velocity either.
    """

    requires = AverageVelocityStudent
    start_times = StartTimes.PRIOR

    def __init__(
        self, options: GuidanceConfig, prediction: PredictionConfig | None, correction: CorrectionConfig | None
    ) -> None:
        self._options, self._prediction, self._correction = options, prediction, correction

    @classmethod
    def from_config(cls, config: GuidanceConfig, context: BuildContext) -> Self:
        if isinstance(config, PredictionConfig):
            check_derivative(config.derivative, context)
        return super().from_config(config, context)

    @abstractmethod
    def split(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Host indices of the prediction rows and of the correction rows."""

    def scale(
        self,
        strength: float,
        predicted: Prediction | None,
        corrected: Correction,
        draws: Draws,
        progress: Progress,
        context: Context,
    ) -> Tensor:
        """lambda, 0-d or (C,): the factor of the correction's gradient; here alpha itself."""
        return corrected.norm.new_full((), strength)

    @final
    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        """The fake velocity: a copy of the student *with the teacher's weights*, so that at first v_N = v."""
        if self._correction is None:
            return {}
        return {FAKE_VELOCITY: Role(copy.deepcopy(student), optimizer=self._correction.fake_velocity_optimizer)}

    @final
    def losses(
        self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context
    ) -> dict[str, Loss]:
        asked = self._ask(models, batch, draws, progress, apart=False)
        parts = [] if asked.predicted is None else [asked.predicted.per_sample]
        terms = asked.terms
        if asked.corrected is not None:
            per_sample, more = self._balance(asked.predicted, asked.corrected, asked.u_back, draws, progress, context)
            parts.append(per_sample)
            terms = terms | more
        return {"student": Loss(torch.cat(parts), terms), **asked.losses}

    def _ask(self, models: Models, batch: Batch, draws: Draws, progress: Progress, *, apart: bool) -> _Asked:
        """Everything but the balance. ``apart``: the correction rows pass through the student without gradient."""
        student, teacher, options = models["student"], models.teacher, self._options
        prediction, correction = self._prediction, self._correction

        # Draw. All rows start at the prior, t = 1, and jump to s = 1 - d; prediction rows come first, so that both
        # halves share every pass. Correction rows have d = 1.
        ahead, back = self.split(draws)
        rows, num_ahead = torch.cat([ahead, back]), len(ahead)
        z = draws.noise("prior", teacher.sample_shape)
        z = z[rows.to(z.device, non_blocking=True)]
        g = uniform_between(draws.uniform("guidance"), options.guidance_min, options.guidance_max)[rows]
        d = torch.ones(len(rows), dtype=torch.float64)
        if prediction is not None:
            d[:num_ahead] = durations(draws.uniform("duration"), prediction)[ahead]
        labels = teacher.sample_condition(draws) if batch.condition is None else batch.condition
        condition = index_condition(labels, rows)
        labels_ahead, labels_back = index_condition(labels, ahead), index_condition(labels, back)

        # u(z, d), the one pass that trains the student; f(z, d) = z - d u, where d = 1 its samples.
        one = torch.ones_like(d)
        s = 1 - d
        jumps = Jumps(z[:num_ahead], one[:num_ahead], s[:num_ahead], labels_ahead, g[:num_ahead])
        jumps_back = Jumps(z[num_ahead:], one[num_ahead:], s[num_ahead:], labels_back, g[num_ahead:])
        if apart:
            value = velocity_with_gradient(student, *jumps)
            u_back = velocity_without_gradient(student, *jumps_back)
        else:
            u = velocity_with_gradient(student, z, one, s, condition, g)
            value, u_back = u[:num_ahead], u[num_ahead:]
        f = average_velocity_jump(
            z, torch.cat([value.detach(), u_back.detach()]), like_states(one, z), like_states(s, z)
        )

        # Every question to the teacher is known now: ask them all at once.
        # Prediction: v(f, 1 - d). Correction: v(x_r, r) at samples x noised to r, x_r = (1 - r) x + r n.
        queries: list[tuple[Tensor, Tensor, Tensor]] = []
        if prediction is not None:
            t = jumps.s
            queries.append((f[:num_ahead], t, Guidance(g[:num_ahead], *prediction.guidance_interval).at(t)))
        if correction is not None:
            x = f[num_ahead:]
            n = draws.rows(back).noise("correction-noise", tuple(x.shape[1:]))
            r = noise_levels(draws.uniform("noise-level")[back], correction).clamp(*teacher.time_range)
            x_r = linear_interpolate(x, n, r)
            queries.append((x_r, r, corrector_weights(g[num_ahead:], r, correction)))
        states, times, weights = map(torch.cat, zip(*queries, strict=True))
        v = teacher_velocity(teacher, states, times, condition, weights)

        terms: dict[str, Tensor] = {}
        losses: dict[str, Loss] = {}
        predicted: Prediction | None = None
        corrected: Correction | None = None
        if prediction is not None:
            # Delta_G = u + d du/dd - v(f, 1 - d).
            derivative = partial(duration_derivative, student, jumps, value=value)
            du_dd = derivative(options=prediction)
            power, epsilon = prediction.weight_power, prediction.weight_epsilon
            predicted = predict(value, du_dd, v[:num_ahead], d[:num_ahead], power=power, epsilon=epsilon)
            terms["prediction_loss"] = predicted.per_sample.detach().mean()
            terms["prediction_residual"] = predicted.norm.mean()
            terms["weight_mean"] = predicted.weight.mean()
            every = prediction.check_derivative_every
            if every and progress.step % every == 0:
                terms["derivative_relative_error"] = relative_error(du_dd, derivative(options=DerivativeOptions()))

        if correction is not None:
            # Delta_N = v_N(x_r, r) - v(x_r, r). One pass of the fake velocity serves both: v_N for the student, and its
            # own flow matching, whose target is n - x. At s = t = r the average velocity is the instantaneous one.
            v_n = velocity_with_gradient(models[FAKE_VELOCITY], x_r, r, r, labels_back, g[num_ahead:])
            losses[FAKE_VELOCITY] = Loss(mean_square(v_n - linear_velocity(x, n)))
            power, epsilon = correction.correction_weight_power, correction.weight_epsilon
            corrected = correct(v_n, v[num_ahead:], linear_velocity(x, n), r, power=power, epsilon=epsilon)
        return _Asked(predicted, corrected, losses, terms, jumps_back, u_back)

    def _balance(
        self,
        predicted: Prediction | None,
        corrected: Correction,
        u_back: Tensor,
        draws: Draws,
        progress: Progress,
        context: Context,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The correction rows' (C,) losses, of the size that lambda gives them, and what to log of them."""
        correction = self._correction
        assert correction is not None
        # alpha rises from 0 while the fake velocity learns; lambda brings both gradients to one size.
        warmup = correction.correction_warmup_images
        alpha = correction.balance_strength * (min(1.0, progress.images / warmup) if warmup else 1.0)
        scale = self.scale(alpha, predicted, corrected, draws, progress, context)
        terms = {"correction_residual": corrected.norm.mean(), "balance": scale.mean()}
        terms["correction_signal"] = corrected.agreement.mean() / corrected.norm.square().mean().clamp(min=1e-12)
        if predicted is not None:
            back, ahead = corrected.norm * corrected.weight * scale, predicted.norm * predicted.weight
            terms["correction_share"] = back.sum() / (back.sum() + ahead.sum()).clamp(min=1e-12)
        return corrected.per_sample(u_back, scale), terms


@final
class FreeFlow(PredictorCorrector, ObjectiveInParts, StatefulObjective):
    """Prediction and correction on one batch: together better than either alone.

    lambda = alpha E||Delta_G|| / (E||Delta_N|| + epsilon) scales the correction's gradient to the prediction's;
    E runs over the global batch. It equates the gradients of one row of either kind; the batch's mean then weighs
    the halves by their shares, so that 25 % of rows carry 25 % of the sum (``balance_strength`` changes that).

    ``balance: signal`` multiplies that, at each noise level r, by rho(r) = E<Delta_N, (n - x) - v> / E||Delta_N||^2,
    clamped to [0, 1] and measured by moving averages: n - x is an unbiased sample of the velocity that v_N estimates,
    so that rho Delta_N is the least squares estimate of the true difference. A correction that is all error of the fake
    velocity fades: at the start, at levels where it fails, and at the end.

    Raises:
        ConfigError: (from ``losses``) a batch too small to hold rows of both kinds.
    """

    def __init__(self, config: FreeFlowConfig) -> None:
        super().__init__(config, config, config)
        self._config = config
        self.uses_batch_means = config.adaptive
        # Averages by level of <Delta_N, (n - x) - v> and ||Delta_N||^2: before the present step, and with it.
        self._before = self._averages = torch.zeros(2, SIGNAL_LEVELS)
        self._images = -1

    def split(self, draws: Draws) -> tuple[Tensor, Tensor]:
        ahead, back = draws.split(self._config.correction_share)
        if not len(ahead) or not len(back):
            raise ConfigError(
                f"A batch of {draws.batch_size} rows split by objective.correction_share="
                f"{self._config.correction_share:g} has {len(ahead)} prediction and {len(back)} correction rows; the "
                "freeflow objective needs at least one of each. Use a larger training.batch_size, or the objective "
                "freeflow-prediction or freeflow-correction."
            )
        return ahead, back

    def early_losses(
        self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context
    ) -> tuple[dict[str, Loss], Callable[[Context], dict[str, Loss]]]:
        """Prediction and the fake velocity need no lambda. The correction rows' residuals are kept, and pass again."""
        asked = self._ask(models, batch, draws, progress, apart=True)
        corrected = asked.corrected
        assert asked.predicted is not None
        assert corrected is not None
        early = asked.predicted.per_sample
        predicted = replace(asked.predicted, per_sample=early.detach())
        self._balance(predicted, corrected, asked.u_back, draws, progress, context)
        back = asked.back._replace(x_t=asked.back.x_t.clone())  # not all rows of it
        share = len(early) / (len(early) + len(back.t))

        def rest(context: Context) -> dict[str, Loss]:
            u_back = velocity_with_gradient(models["student"], *back)
            late = self._balance(predicted, corrected, u_back, draws, progress, context)
            return {"student": Loss(*late, 1 - share)}

        return {"student": Loss(early, asked.terms, share), **asked.losses}, rest

    def scale(
        self,
        strength: float,
        predicted: Prediction | None,
        corrected: Correction,
        draws: Draws,
        progress: Progress,
        context: Context,
    ) -> Tensor:
        config = self._config
        if not config.adaptive or predicted is None:
            return super().scale(strength, predicted, corrected, draws, progress, context)
        ahead, back = predicted.norm, corrected.norm
        if config.balance != "raw":
            ahead, back = ahead * predicted.weight, back * corrected.weight
        scale = balance(context.mean(ahead), context.mean(back), strength, config.balance_epsilon)
        if config.balance == "signal":
            scale = scale * self._signal(corrected, draws.batch_size, progress, context)
        return scale

    def _signal(self, corrected: Correction, batch_size: int, progress: Progress, context: Context) -> Tensor:
        """rho (C,) in [0, 1] of the correction rows; every micro-batch of a step has the same averages."""
        level = (corrected.r * SIGNAL_LEVELS).long().clamp(max=SIGNAL_LEVELS - 1)
        rows = one_hot(level, SIGNAL_LEVELS).to(corrected.norm, non_blocking=True)
        parts = torch.stack([corrected.agreement, corrected.norm.square()], 1)
        means = context.mean((parts[:, :, None] * rows[:, None]).flatten(1)).view(2, SIGNAL_LEVELS)
        if progress.images != self._images:
            self._before, self._images = self._averages.to(means), progress.images
        decay = 0.5 ** (batch_size / self._config.signal_halflife_images)
        self._averages = decay * self._before + (1 - decay) * means
        agreement, square = self._averages
        rho = (agreement / square.clamp(min=1e-12)).clamp(0, 1)
        return (rows * rho).sum(1)  # not a matrix product, which autocast would round

    def state_dict(self) -> dict[str, Tensor]:
        return {"signal": self._averages, "images": torch.tensor(self._images)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._averages, self._images = state["signal"], int(state["images"])


@final
class FreeFlowPrediction(PredictorCorrector):
    """Prediction alone: every row regresses the student's velocity on its own generating target."""

    def __init__(self, config: PredictionConfig) -> None:
        super().__init__(config, config, None)

    def split(self, draws: Draws) -> tuple[Tensor, Tensor]:
        return torch.arange(len(draws.index)), torch.empty(0, dtype=torch.int64)


@final
class FreeFlowCorrection(PredictorCorrector):
    """Correction alone: every row. lambda = alpha, for there is no prediction to balance with. It collapses modes."""

    def __init__(self, config: CorrectionConfig) -> None:
        super().__init__(config, None, config)

    def split(self, draws: Draws) -> tuple[Tensor, Tensor]:
        return torch.empty(0, dtype=torch.int64), torch.arange(len(draws.index))
