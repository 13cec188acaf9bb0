"""A Gaussian mixture: its exact velocity, where that leads, and exact samples of it as data."""

import hashlib
import math
from collections.abc import Iterator
from typing import Any, Self, final

import torch
from torch import Tensor
from torchdiffeq import odeint

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, Codec, Source, Teacher, block_starts
from freeflow_core.math.flow import expand_times, mean_square
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Batch, Condition, Draws, Guidance
from freeflow_toy.config import GaussianMixtureConfig, MixtureSourceConfig, StatesConfig

_RELATIVE_TOLERANCE = 1e-11
_ABSOLUTE_TOLERANCE = 1e-12


@final
class GaussianMixtureTeacher(Teacher):
    """v(x_t, t, c) = E[n - x | x_t, c] for data x from a Gaussian mixture, in closed form.

    With x ~ N(mu, Q diag(lam) Q^T) per component and x_t = (1 - t) x + t n, (x, n, x_t) are jointly Gaussian, so with
    y = Q^T (x_t - (1 - t) mu) and g = (1 - t)^2 lam + t^2 the component's velocity is
    -mu + Q [(t - (1 - t) lam) / g * y], and the mixture's weighs them by the posterior of the component given x_t.
    Differentiable in every order and mode, exact at t = 0 and t = 1, computed in the dtype of the states (float32 at
    least). A class restricts the mixture to its components; label ``num_classes`` is the null class, all of them.

    Args:
        means: (K, *D); ``*D`` becomes ``sample_shape``.
        stds: (K,) or (K, *D) standard deviations, positive; or
        covariances: (K, dim, dim) of the flattened state, symmetric positive definite.
        weights: (K,) positive shares, normalised here; None: equal.
        labels: (K,) class of each component, using every class from 0 on; None: unconditional.

    Raises:
        ConfigError: shapes that do not fit, or values out of range.
    """

    means: Tensor
    variances: Tensor
    basis: Tensor | None
    log_weights: Tensor
    class_probabilities: Tensor

    def __init__(
        self,
        means: Tensor,
        *,
        stds: Tensor | None = None,
        covariances: Tensor | None = None,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        super().__init__()
        K = means.shape[0]
        self.sample_shape = tuple(means.shape[1:])
        self.register_buffer("means", means.double().flatten(1).clone())
        if (stds is None) == (covariances is None):
            raise ConfigError("A Gaussian mixture needs exactly one of stds and covariances.")
        basis = None
        if covariances is not None:
            _check_shape("covariances", covariances, (K, self.means.shape[1], self.means.shape[1]))
            variances, basis = torch.linalg.eigh(covariances.double())
        else:
            assert stds is not None
            _check_shape("stds", stds, (K,) if stds.ndim == 1 else tuple(means.shape))
            spread = stds.double().reshape(K, -1)
            variances = (spread * spread.abs()).expand_as(self.means).clone()  # a negative std stays visible
        if not bool((variances > 0).all()):
            raise ConfigError("Every component of a mixture needs positive stds or a positive definite covariance.")
        self.register_buffer("variances", variances)
        self.register_buffer("basis", basis)
        self._set_classes(torch.ones(K) if weights is None else weights, labels)

    @classmethod
    def from_config(cls, config: GaussianMixtureConfig, context: BuildContext) -> Self:
        def tensor(values: Any, dtype: torch.dtype = torch.float64) -> Tensor | None:
            return None if values is None else torch.tensor(values, dtype=dtype)

        means = layout_means(config).reshape(-1, *config.sample_shape)
        teacher = cls(
            means,
            stds=torch.full((len(means),), config.std) if config.layout != "custom" else tensor(config.stds),
            covariances=tensor(config.covariances),
            weights=tensor(config.weights),
            labels=tensor(config.component_labels, torch.int64),
        )
        # Apple's devices know no float64.
        return teacher.float() if context.device.type == "mps" else teacher

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        x, t = self._flat(x_t, t)
        y, variance, logits = self._components(x, t, condition)
        slope = (t - (1 - t) * self.variances.to(x)) / variance
        per_component = self._from_eigen(slope * y) - self.means.to(x)
        return _mean(logits, per_component).reshape(x_t.shape).to(x_t.dtype)

    def score(self, x_t: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """grad_x log p_t(x_t | c), (N, *D). On this path it equals -(x_t + (1 - t) v) / t for t > 0."""
        x, t = self._flat(x_t, t)
        y, variance, logits = self._components(x, t, condition)
        return _mean(logits, -self._from_eigen(y / variance)).reshape(x_t.shape).to(x_t.dtype)

    def log_density(self, x_t: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        x, t = self._flat(x_t, t)
        logits = self._components(x, t, condition)[2]
        return logits.logsumexp(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)

    def exact_flow_map(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition = None) -> Tensor:
        """X(x_t, t, s) in closed form, (N, *D), where each row's (conditional) distribution is one Gaussian.

        x_s = (1 - s) mu + Q diag(std_s / std_t) Q^T (x_t - (1 - t) mu), std_t^2 = (1 - t)^2 lam + t^2.

        Raises:
            ConfigError: a row's distribution has several components; use :meth:`reference_flow_map`.
        """
        rows = self._class_rows(condition).expand(x_t.shape[0])
        included = self.log_weights[rows.to(self.log_weights.device)] > -math.inf
        if bool((included.sum(1) != 1).any()):
            raise ConfigError(
                "A closed-form flow map needs the distribution to be a single Gaussian, but some rows' classes have "
                "several components. Use reference_flow_map, which integrates to 1e-10."
            )
        component = included.int().argmax(1).to(x_t.device)
        x, t = self._flat(x_t, t)
        t, s = t.squeeze(2), expand_times(s, x)
        mean, variance = self.means.to(x)[component], self.variances.to(x)[component]
        ratio = (((1 - s).square() * variance + s.square()) / ((1 - t).square() * variance + t.square())).sqrt()
        centred = x - (1 - t) * mean
        moved = ratio * centred
        if self.basis is not None:
            basis = self.basis.to(x)[component]
            with torch.autocast(x.device.type, enabled=False):
                moved = torch.einsum("nde,ne->nd", basis, ratio * torch.einsum("nde,nd->ne", basis, centred))
        return ((1 - s) * mean + moved).reshape(x_t.shape).to(x_t.dtype)

    @torch.no_grad()
    def reference_flow_map(
        self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition = None, guidance: Guidance | None = None
    ) -> Tensor:
        """X(x_t, t, s) for any mixture and guidance, (N, *D): dopri8 in float64, each sample to about 1e-10.

        Guidance jumps at its interval's very ends, as with infinitely many steps, so the path is cut there and each
        piece is smooth: for every sample, piece [bottom, top] is run over an internal time from 0 to 1, in which
        samples with nothing to do rest.
        """
        x = x_t.double()
        t, s = t.detach().cpu().double(), s.detach().cpu().double()
        ones = torch.ones_like(t)
        weight = ones if guidance is None else guidance.weight.detach().cpu().double()
        low, high = (0.0, 1.0) if guidance is None else (guidance.low, guidance.high)
        for bottom, top, weight_here in ((high, 1.0, ones), (low, high, weight), (0.0, low, ones)):
            start, end = t.clamp(bottom, top), s.clamp(bottom, top)
            if bottom < top and bool((start != end).any()):
                x = self._integrate(x, start, end, condition, weight_here)
        return x.to(x_t.dtype)

    def _integrate(self, x: Tensor, start: Tensor, end: Tensor, condition: Condition, weight: Tensor) -> Tensor:
        rate, span = expand_times(end - start, x), torch.tensor([0.0, 1.0], dtype=torch.float64, device=x.device)
        path = odeint(
            lambda progress, state: (
                rate * self.guided_velocity(state, start + progress.cpu() * (end - start), condition, weight)
            ),
            x,
            span,
            rtol=_RELATIVE_TOLERANCE,
            atol=_ABSOLUTE_TOLERANCE,
            method="dopri8",
            # Without step_t the end point would be interpolated, at a lower order; and the default norm averages over
            # the batch, so that one hard sample could hide among many easy ones.
            options={"norm": lambda error: mean_square(error).max().sqrt(), "step_t": span[1:]},
        )
        return path[-1]

    def sample_data(self, draws: Draws, condition: Condition = None) -> Tensor:
        """Exact samples (N, *D) at t = 0 of the condition's classes, one per row of ``draws``."""
        probabilities = self.log_weights.exp().cpu()[self._class_rows(condition).cpu()].double()
        component = _inverse_cdf(probabilities, draws.uniform("mixture-component")).to(draws.device)
        noise = draws.noise("mixture-noise", self.sample_shape).flatten(1)
        scaled = self.variances.to(noise)[component].sqrt() * noise
        if self.basis is not None:
            scaled = torch.einsum("nde,ne->nd", self.basis.to(noise)[component], scaled)
        return (self.means.to(noise)[component] + scaled).reshape(-1, *self.sample_shape)

    def null_condition(self, condition: Condition) -> Condition:
        if self.num_classes is None or not isinstance(condition, Tensor):
            raise ConfigError(
                "This Gaussian mixture is unconditional, so it cannot be guided: there is no class to guide towards. "
                "Give its components classes (labels or num_classes), or use guidance weight 1."
            )
        return torch.full_like(condition, self.num_classes)

    def sample_condition(self, draws: Draws) -> Condition:
        if self.num_classes is None:
            return None
        probabilities = self.class_probabilities.cpu().double().unsqueeze(0)
        return _inverse_cdf(probabilities, draws.uniform("condition")).to(draws.device)

    def _set_classes(self, weights: Tensor, labels: Tensor | None) -> None:
        K = self.means.shape[0]
        _check_shape("weights", weights, (K,))
        if not bool((weights > 0).all()):
            raise ConfigError(f"Weights of a Gaussian mixture must be positive, got {weights.tolist()}.")
        log_weights = (weights.double() / weights.double().sum()).log().unsqueeze(0)
        if labels is not None:
            _check_shape("labels", labels, (K,))
            classes = torch.tensor(sorted(set(labels.tolist())), device=labels.device)
            if not torch.equal(classes, torch.arange(len(classes), device=classes.device)):
                raise ConfigError(f"Labels must use every class from 0 on, got the classes {classes.tolist()}.")
            self.num_classes = len(classes)
            members = labels.long() == classes.unsqueeze(1)
            probabilities = (log_weights.exp() * members).sum(1)
            within = torch.where(members, log_weights - probabilities.log().unsqueeze(1), -math.inf)
            log_weights = torch.cat([within, log_weights])
        else:
            probabilities = torch.ones(1, dtype=torch.float64)
        self.register_buffer("log_weights", log_weights)
        self.register_buffer("class_probabilities", probabilities)

    def _class_rows(self, condition: Condition) -> Tensor:
        """Row of ``log_weights`` for each sample, or one for all."""
        if condition is None and self.num_classes is None:
            return torch.zeros(1, dtype=torch.long, device=self.log_weights.device)
        if isinstance(condition, Tensor) and self.num_classes is not None:
            return condition
        raise ValueError(
            f"this mixture has num_classes={self.num_classes}, so its condition must be "
            f"{'None' if self.num_classes is None else '(N,) labels'}, got {type(condition).__name__}"
        )

    def _flat(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """States (N, dim) in at least float32, and times (N, 1, 1) like them."""
        x = x_t.to(torch.promote_types(x_t.dtype, torch.float32)).flatten(1)
        return x, expand_times(t, x).unsqueeze(2)

    def _components(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """Per component: y and its variance g, both (N, K, dim), and log(weight * density) (N, K) less the constant."""
        y = x.unsqueeze(1) - (1 - t) * self.means.to(x)
        if self.basis is not None:
            with torch.autocast(x.device.type, enabled=False):
                y = torch.einsum("nkd,kde->nke", y, self.basis.to(x))
        variance = (1 - t).square() * self.variances.to(x) + t.square()
        weights = self.log_weights.to(x)[self._class_rows(condition).to(x.device)]
        return y, variance, weights - 0.5 * (variance.log() + y.square() / variance).sum(2)

    def _from_eigen(self, values: Tensor) -> Tensor:
        if self.basis is None:
            return values
        with torch.autocast(values.device.type, enabled=False):
            return torch.einsum("nke,kde->nkd", values, self.basis.to(values))


def _mean(logits: Tensor, values: Tensor) -> Tensor:
    """Over the components: (N, dim) of (N, K) and (N, K, dim)."""
    return (logits.softmax(1).unsqueeze(2) * values).sum(1)


def _inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(N,) indices: the first whose cumulated probability exceeds ``uniform`` (N,), never one of probability 0.

    ``probabilities`` are (N, K), or (1, K) for all.
    """
    cumulated = probabilities.cumsum(1)
    last = (probabilities > 0).long().mul(torch.arange(probabilities.shape[1])).amax(1)
    return torch.minimum((cumulated <= uniform.unsqueeze(1)).sum(1), last)


def _check_shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(value.shape) != expected:
        raise ConfigError(f"{name} of a Gaussian mixture must have shape {expected}, got {tuple(value.shape)}.")


def layout_means(config: GaussianMixtureConfig) -> Tensor:
    """(K, dim) float64 means of the configured layout."""
    if config.layout == "custom":
        return torch.tensor(config.means, dtype=torch.float64)
    means = torch.zeros(config.num_components, config.dimension, dtype=torch.float64)
    if config.layout == "single":
        means[:, 0] = config.radius
    elif config.layout == "ring":
        angle = 2 * math.pi * torch.arange(config.num_modes, dtype=torch.float64) / config.num_modes
        means[:, 0], means[:, 1] = config.radius * angle.cos(), config.radius * angle.sin()
    else:
        side = math.isqrt(config.num_modes)
        line = config.radius * torch.linspace(-1, 1, side, dtype=torch.float64) if side > 1 else torch.zeros(1).double()
        means[:, 0], means[:, 1] = line.repeat(side), line.repeat_interleave(side)
    return means


@final
class MixtureSource(Source):
    """Endless data whose exact velocity is the ``gaussian-mixture`` teacher's with the same options.

    Sample i and its label are a function of (seed, i) alone: the label from p(c), the state from p(x | c). No sample
    is ever seen twice, so a data-based objective here meets its assumptions exactly.

    The ``num_held_out`` samples of ``held_out`` are of a stream of their own.
    """

    encoded_by = "states"

    def __init__(self, mixture: GaussianMixtureTeacher, seed: int, num_held_out: int) -> None:
        self._mixture = mixture
        self._seed = seed
        self._num_held_out = num_held_out
        self.num_classes = mixture.num_classes

    @classmethod
    def from_config(cls, config: MixtureSourceConfig, context: BuildContext) -> Self:
        mixture = GaussianMixtureTeacher.from_config(config, context)
        return cls(mixture.double().cpu(), config.seed, config.held_out)

    def batches(self, start: int, batch_size: int, rank: int, world_size: int) -> Iterator[Batch]:
        """As the interface says, float32 states (N, *D)."""
        starts = block_starts(start, batch_size, rank, world_size)
        return (Batch(*self._rows("training", first, batch_size)) for first in starts)

    def held_out(self) -> tuple[Tensor, Condition] | None:
        return self._rows("held-out", 0, self._num_held_out) if self._num_held_out else None

    def _rows(self, purpose: str, start: int, count: int) -> tuple[Tensor, Condition]:
        # A seed of its own for each purpose, so that no stream meets one of the run's with equal seeds.
        digest = hashlib.blake2b(f"gaussian-mixture/{purpose}/{self._seed}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "little") >> 1
        draws = PhiloxDraws(seed, torch.arange(start, start + count), dtype=torch.float64)
        condition = self._mixture.sample_condition(draws)
        return self._mixture.sample_data(draws, condition).float(), condition


@final
class StatesCodec(Codec):
    """What a source yields already are states: encoding passes them on, whatever their shape."""

    def __init__(self, config: StatesConfig) -> None:
        """There is nothing to choose."""

    def encode(self, images: Tensor) -> Tensor:
        """The float states (N, *D) given. Raises ``ConfigError`` for integers, which are images to be coded."""
        if not images.is_floating_point():
            raise ConfigError(
                f"The states codec passes float states on, got {images.dtype} {tuple(images.shape)}. uint8 images need "
                "codec: pixels."
            )
        return images

    def state_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
        return image_shape

    def decode(self, x: Tensor) -> Tensor:
        """uint8 values for pictures, with [-1, 1] as 0..255; states beyond are clamped."""
        return x.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
