"""Guidance as extrapolation from a worse field through a better one."""

from __future__ import annotations

from torch import Tensor, cat, lerp

from freeflow_core.math.broadcast import expand_times


def extrapolate(field: Tensor, baseline: Tensor, rows: Tensor, weight: Tensor, channels: int | None = None) -> Tensor:
    """baseline + w (field - baseline) in the chosen rows, ``field`` in the others: (N, *D).

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
    guided = lerp(baseline, chosen, expand_times(weight[rows], baseline))
    return field.index_copy(0, device_rows, guided if channels is None else cat([guided, rest], 1))
