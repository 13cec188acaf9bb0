"""Derivatives of a network along a direction of its inputs, without gradient.

Forward mode is exact but needs attention without a fused kernel; finite differences keep the fused kernels but need
float32. This module owns the choice and the check of one against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from freeflow_core.errors import ConfigError

Function = Callable[..., Tensor]


class DerivativeMethod(str, Enum):
    """How a directional derivative is computed; F is the cost of one forward pass."""

    FORWARD_MODE = "forward-mode"
    """Exact (torch.func.jvp), math attention, about 2-3F."""
    CENTRAL = "central"
    """(f(x + h) - f(x - h)) / 2h, error O(h^2), 2F."""
    ONE_SIDED = "one-sided"
    """(f(x + h) - f(x)) / h with f(x) from the gradient pass, error O(h), 1F."""


@torch.no_grad()
def directional_derivative(
    function: Function,
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
    *,
    method: DerivativeMethod,
    step: float,
    value: Tensor | None = None,
) -> Tensor:
    """d/de function(primals + e * tangents) at e = 0.

    Args:
        function: of float tensors only; close over labels.
        primals, tangents: where, and along which direction; same shapes.
        method: see :class:`DerivativeMethod`.
        step: h of the finite differences; inputs should be O(1).
        value: function(primals), for ONE_SIDED; it is used detached.

    Raises:
        ConfigError: one-sided differences under bf16 autocast, whose rounding would swamp the difference.
    """
    primals, tangents = tuple(primals), tuple(tangents)
    if method is DerivativeMethod.FORWARD_MODE:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.jvp(function, primals, tangents)[1]
    if method is DerivativeMethod.CENTRAL:
        with full_precision(primals):
            ahead = function(*(p + step * d for p, d in zip(primals, tangents, strict=True)))
            behind = function(*(p - step * d for p, d in zip(primals, tangents, strict=True)))
        return (ahead - behind) / (2 * step)
    if value is None:
        raise ValueError("one-sided differences need the value at the primals")
    if _autocast_is_on(primals):
        raise ConfigError(
            "derivative=one-sided reuses the gradient pass, which runs in bf16 here; its rounding error would swamp "
            "the difference. Use derivative=forward-mode or derivative=central, or runtime.precision=float32."
        )
    with full_precision(primals):
        ahead = function(*(p + step * d for p, d in zip(primals, tangents, strict=True)))
    return (ahead - value.detach()) / step


def compare_derivatives(
    function: Function, primals: Sequence[Tensor], tangents: Sequence[Tensor], *, method: DerivativeMethod, step: float
) -> float:
    """Relative error ||d_method - d_forward|| / ||d_forward|| of a finite difference against forward mode."""
    with torch.no_grad():
        value = function(*primals)
    exact = directional_derivative(function, primals, tangents, method=DerivativeMethod.FORWARD_MODE, step=step)
    other = directional_derivative(function, primals, tangents, method=method, step=step, value=value)
    scale = exact.double().norm().clamp_min(torch.finfo(torch.float64).tiny)
    return float((other.double() - exact.double()).norm() / scale)


@contextmanager
def full_precision(tensors: Sequence[Tensor]) -> Iterator[None]:
    """No autocast and no TF32: a difference of two nearly equal outputs keeps few digits otherwise."""
    device = tensors[0].device.type
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def _autocast_is_on(tensors: Sequence[Tensor]) -> bool:
    return bool(torch.is_autocast_enabled(tensors[0].device.type))
