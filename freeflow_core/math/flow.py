"""The algebra of a flow: times beside states, the straight path from data (t = 0) to noise (t = 1), jumps, guidance."""

import torch
from torch import Tensor


def like_states(values: Tensor, x: Tensor) -> Tensor:
    """Host ``values`` (N,), such as times, on the device and in the dtype of the states ``x``."""
    return values.to(device=x.device, dtype=x.dtype, non_blocking=True)


def expand_times(t: Tensor, like: Tensor) -> Tensor:
    """Times ``t`` (N,) as (N, 1, ..., 1) like ``like`` (N, *D) in device and dtype; nothing else broadcasts them."""
    if t.ndim != 1 or t.shape[0] != like.shape[0]:
        raise ValueError(f"times must be ({like.shape[0]},) for states {tuple(like.shape)}, got {tuple(t.shape)}")
    return t.to(device=like.device, dtype=like.dtype, non_blocking=True).reshape(-1, *([1] * (like.ndim - 1)))


def mean_square(x: Tensor) -> Tensor:
    """Mean of squares over all dimensions but the first: (N, *D) -> (N,)."""
    return x.square().flatten(1).mean(1)


def linear_interpolate(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x + t n for ``x`` and ``noise`` (N, *D), ``t`` (N,)."""
    t = expand_times(t, x)
    return (1 - t) * x + t * noise


def linear_velocity(x: Tensor, noise: Tensor) -> Tensor:
    """v = dx_t/dt = n - x."""
    return noise - x


def average_velocity_jump(x_t: Tensor, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s = x_t - (t - s) u (Geng et al. 2025, eq. 3), for ``x_t`` and ``u`` (N, *D), ``t`` and ``s`` (N,)."""
    return x_t - expand_times(t - s, x_t) * u


def extrapolate(field: Tensor, baseline: Tensor, rows: Tensor, weight: Tensor, channels: int | None = None) -> Tensor:
    """Guidance, baseline + w (field - baseline), in the chosen rows; ``field`` in the others: (N, *D).

    Args:
        field: (N, *D), the conditional velocity.
        baseline: (K, *D) of the chosen rows: the unconditional velocity, or that of a weaker model.
        rows: (K,) host indices.
        weight: (N,) weights; 1 leaves a row as it is.
        channels: only the first so many of dimension 1 are extrapolated; None: all.
    """
    device_rows = rows.to(field.device, non_blocking=True)
    chosen = field[device_rows]
    if channels is not None:
        chosen, rest = chosen[:, :channels], chosen[:, channels:]
        baseline = baseline[:, :channels]
    guided = torch.lerp(baseline, chosen, expand_times(weight[rows], baseline))
    return field.index_copy(0, device_rows, guided if channels is None else torch.cat([guided, rest], 1))


def filled_up(rows: Tensor, number: int) -> Tensor:
    """Indices ``rows`` (K,) of a batch of ``number``, and the first of them again up to a multiple of a quarter of it.

    A network compiled for numbers of rows then meets at most four, however many are chosen; none stay none.
    """
    share = -(-number // 4)
    missing = min(-len(rows) % share, number - len(rows))
    return torch.cat([rows, rows[:1].expand(missing)]) if len(rows) else rows


def logit_normal(uniform: Tensor, location: float, scale: float) -> Tensor:
    """sigmoid(location + scale * N(0, 1)); location > 0 favours t near 1, the noise. ``uniform`` (N,) float64."""
    return torch.sigmoid(location + scale * torch.special.ndtri(uniform))


def uniform_between(uniform: Tensor, low: float, high: float) -> Tensor:
    """Uniform on (low, high]: the open end is at ``low``, so that (0, 1] never yields 0."""
    return high - (high - low) * uniform


def uniform_grid(num_steps: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    """(num_steps + 1,) equally spaced falling times, float64. ``ValueError`` unless num_steps >= 1 and start > end."""
    if num_steps < 1 or not start > end:
        raise ValueError(f"a grid needs num_steps >= 1 and start > end, got {num_steps}, {start}, {end}")
    return torch.linspace(start, end, num_steps + 1, dtype=torch.float64)


def jump_grid(jump_to: float, num_steps: int) -> Tensor:
    """1, then ``jump_to``, then ``num_steps`` equal steps to 0: for a student jump followed by the teacher."""
    return torch.cat([torch.ones(1, dtype=torch.float64), uniform_grid(num_steps, start=jump_to)])
