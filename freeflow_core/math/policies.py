"""Closed-form velocity fields over one segment, and how they are rolled (pi-Flow: Chen et al. 2025).

A network that is asked once, at (x_t, t), emits such a policy for all times down to the segment's end s; following it
costs no network evaluation. Everything here runs in at least float32, also under autocast.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from freeflow_core.math.flow import expand_times

_EARLIEST = 1e-4
"""DX fields are not asked closer to the data: v = (x - x_0) / t there."""


class Policy(ABC):
    """A velocity field v(x, t) over one segment, one for each of N rows.

    Attributes:
        num_components: parts of a mixture, which ``without`` can leave out; 1: the policy is no mixture.
    """

    num_components: int = 1

    @abstractmethod
    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v (N, *D) at ``x`` (N, *D) and ``t`` (N,), without a network evaluation."""

    def without(self, dropped: Tensor) -> Policy:
        """The policy without the components marked in ``dropped`` (N, num_components) bool, itself if it has none.

        A row whose components would all go keeps them.
        """
        return self


@final
class DXPolicy(Policy):
    """The data point as a function of time alone: v = (x - x_0(t)) / t (pi-Flow's DX policy).

    x_0(t) runs through K points, equally spaced in the raw time and joined by straight lines: the first at the
    segment's *end* s, the last at its start t. One point: a constant x_0, and the path is a straight line.

    Args:
        velocities: (N, K, *D) what the network emits; point k is x_0 = x_t - t velocities[:, k].
        x_t: (N, *D) where it was asked.
        t: (N,) start of the segment.
        s: (N,) its end, s <= t.
        shift: of the raw time in which the points are spaced, see :func:`roll_policy`.
    """

    def __init__(self, velocities: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, shift: float = 1.0) -> None:
        x = _full(x_t)
        self._points = (x - expand_times(t, x) * _full(velocities).transpose(0, 1)).transpose(0, 1)
        self._raw_s, self._shift = raw_time(s, shift), shift
        self._span = (raw_time(t, shift) - self._raw_s).clamp_min(_EARLIEST)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        state = _full(x)
        num = self._points.shape[1]
        raw_s, span = self._raw_s.to(t), self._span.to(t)
        place = ((raw_time(t, self._shift) - raw_s) / span).clamp(0, 1) * (num - 1)
        # Weights of a piecewise linear function: a row touches the two points around its place.
        hats = (1 - (place.unsqueeze(1) - torch.arange(num, device=t.device)).abs()).clamp_min(0)
        with torch.autocast(state.device.type, enabled=False):
            hats = hats.to(device=state.device, dtype=state.dtype, non_blocking=True)
            x_0 = torch.einsum("nk,nkd->nd", hats, self._points.flatten(2)).reshape(state.shape)
        return (state - x_0) / expand_times(t, state).clamp_min(_EARLIEST)


@final
class GMPolicy(Policy):
    """The velocity of the Gaussian mixture that the network believes x_0 to come from (GM policy of pi-Flow).

    At (x_t, t) it emits the posterior of x_0: means mu_k, weights, and one variance S. At another (x, r) the same
    belief, with the evidence of x_t replaced by that of x (GMFlow: Chen et al. 2025), is again a
    mixture, with a_r = (1 - r) / r, zeta = a_r^2 - a_t^2 and nu = a_r x / r - a_t x_t / t:

        mean_k = (S nu + mu_k) / (S zeta + 1),   logit_k += mu_k . (nu - zeta mu_k / 2) / (S zeta + 1),

    and v = (x - sum_k weight_k mean_k) / r. Written here without the poles at r = 0, where v is finite. With one
    component it is exactly the velocity of isotropic Gaussian data, at every state.

    Args:
        velocities: (N, K, C, ...) what the network emits; mu_k = x_t - t velocities[:, k].
        logits: (N, K, 1, ...) weights of the components, for every place of the state: mu . nu sums over C alone.
        log_std: (N,) of the components, in units of velocity: S = (t exp(log_std))^2.
        x_t: (N, C, ...) where it was asked.
        t: (N,) when; above 0.
    """

    def __init__(self, velocities: Tensor, logits: Tensor, log_std: Tensor, x_t: Tensor, t: Tensor) -> None:
        x = _full(x_t)
        time = expand_times(t, x)
        self.num_components = velocities.shape[1]
        self._means = x.unsqueeze(1) - time.unsqueeze(1) * _full(velocities)
        self._logits = _full(logits)
        self._variance = (time * expand_times(_full(log_std).exp(), x)).square()
        self._slope = ((1 - time) / time).square()  # a_t^2
        self._pull = (1 - time) * x / time.square()  # a_t x_t / t

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        state = _full(x)
        time = expand_times(t, state)
        variance, alpha, square = self._variance, 1 - time, time.square()
        # r^2 (S zeta + 1), r^2 nu and r^2 zeta: none has a pole at r = 0.
        scale = (variance * (alpha.square() - square * self._slope) + square).clamp_min(torch.finfo(state.dtype).tiny)
        nu = (alpha * state - square * self._pull).unsqueeze(1)
        zeta = (alpha.square() - square * self._slope).unsqueeze(1)
        evidence = (self._means * (nu - zeta * self._means / 2)).sum(2, keepdim=True) / scale.unsqueeze(1)
        mean = ((self._logits + evidence).softmax(1) * self._means).sum(1)
        pulled = state + variance * (self._pull - self._slope * state) - mean
        return (time * pulled - variance * alpha * state) / scale

    def without(self, dropped: Tensor) -> Policy:
        dropped = dropped & ~dropped.all(1, keepdim=True)
        shape = (*dropped.shape, *([1] * (self._logits.ndim - 2)))
        changed = copy.copy(self)
        changed._logits = self._logits.masked_fill(dropped.reshape(shape).to(self._logits.device), -torch.inf)
        return changed


def roll_policy(
    policy: Policy, x: Tensor, t: Tensor, s: Tensor, *, num_substeps: int = 128, shift: float = 1.0
) -> Tensor:
    """The state (N, *D) at times ``s`` that Euler's method reaches from ``x`` (N, *D) at ``t``, following ``policy``.

    Substeps are equal in the raw time tau of ``t = shift tau / (1 + (shift - 1) tau)`` (Esser et al. 2024, eq. 23;
    above 1: more of them near the noise), ``num_substeps`` to a unit, at least one. A row's substeps depend on its own
    times alone.

    ``t`` and ``s <= t`` are (N,) on the host, or the device is waited for.
    """
    raw_t = raw_time(t, shift)
    span = raw_t - raw_time(s, shift)
    count = (span * num_substeps).round().clamp_min(1)
    steps = torch.arange(int(count.max()) if len(count) else 0, device=t.device, dtype=t.dtype).unsqueeze(1)
    begun = torch.minimum(steps, count - 1)  # rows that have arrived repeat their last substep, with length 0
    times = shifted_time(raw_t - span * (begun / count), shift)
    lengths = times - shifted_time(raw_t - span * ((begun + 1) / count), shift)
    state = _full(x)
    # All times travel to the device at once.
    times, lengths = (values.to(state, non_blocking=True) for values in (times, lengths * (steps < count)))
    for time, length in zip(times, lengths, strict=True):
        state = state - expand_times(length, state) * policy.velocity(state, time)
    return state


def raw_time(t: Tensor, shift: float) -> Tensor:
    """tau of ``t = shift tau / (1 + (shift - 1) tau)``."""
    return t / (shift - (shift - 1) * t)


def shifted_time(raw: Tensor, shift: float) -> Tensor:
    """``t = shift raw / (1 + (shift - 1) raw)``, in [0, 1] for ``raw`` in [0, 1]."""
    return shift * raw / (1 + (shift - 1) * raw)


def _full(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
