"""Derivatives of a network along a direction of its inputs, without gradient.

Forward mode is exact but needs attention without a fused kernel; finite differences keep the fused kernels but need
float32. A difference at the end of an interval would ask a network for times it was never trained at: along a line,
each row says how far it may go to either side, and rows near an end lean inwards, at the same order of error.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from freeflow_core.errors import ConfigError
from freeflow_core.math.flow import expand_times

Function = Callable[..., Tensor]
AlongLine: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""``(offset, rows) -> f``: values (n, *D) of the given host rows (None: all) at offsets (n,) along their lines.

Offsets of central differences come in float64 on the host, where small ones add up best; others like the states.
"""


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
    compiled: bool = False,
) -> Tensor:
    """d/de function(primals + e * tangents) at e = 0.

    Args:
        function: of float tensors only; close over labels.
        primals, tangents: where, and along which direction; same shapes.
        method: see :class:`DerivativeMethod`.
        step: h of the finite differences; inputs should be O(1).
        value: function(primals), for ONE_SIDED; it is used detached.
        compiled: the function asks networks of compiled blocks, which forward mode then runs compiled, to rounding.

    Raises:
        ConfigError: one-sided differences of passes in bf16 or TF32, whose rounding would swamp the difference.
    """
    primals, tangents = tuple(primals), tuple(tangents)
    if method is DerivativeMethod.FORWARD_MODE:
        if not compiled:
            with sdpa_kernel(SDPBackend.MATH):
                return torch.func.jvp(function, primals, tangents)[1]
        # Inside of that transformation torch would run compiled blocks without their kernels.
        with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
            output = function(*map(forward_ad.make_dual, primals, tangents))
            tangent: Tensor | None = forward_ad.unpack_dual(output).tangent  # type: ignore[no-untyped-call]
        return torch.zeros_like(output) if tangent is None else tangent
    if method is DerivativeMethod.ONE_SIDED:
        if value is None:
            raise ValueError("one-sided differences need the value at the primals")
        rounded = "bf16" if torch.is_autocast_enabled(primals[0].device.type) else None
        if rounded is None and torch.get_float32_matmul_precision() != "highest":
            rounded = f"float32 with runtime.matmul_precision={torch.get_float32_matmul_precision()}"
        if rounded is not None:
            raise ConfigError(
                f"derivative=one-sided reuses the gradient pass, which runs in {rounded} here; its rounding would "
                "swamp the difference. Use derivative=forward-mode or derivative=central, or "
                "runtime.precision=float32 with runtime.matmul_precision=highest."
            )
    with full_precision(primals[0]):
        ahead = function(*(p + step * d for p, d in zip(primals, tangents, strict=True)))
        if method is DerivativeMethod.ONE_SIDED and value is not None:
            return (ahead - value.detach()) / step
        behind = function(*(p - step * d for p, d in zip(primals, tangents, strict=True)))
    return (ahead - behind) / (2 * step)


@torch.no_grad()
def line_derivative(
    function: AlongLine,
    below: Tensor,
    above: Tensor,
    value: Tensor,
    *,
    method: DerivativeMethod,
    step: float,
    autocast: bool = False,
    compiled: bool = False,
) -> Tensor:
    """d f / d offset at 0, (N, *D), without gradient, in at least float32 unless ``autocast``.

    Differences run without TF32 whatever the run allows; forward mode, which needs no close numbers, as it does.

    Args:
        function: values along each row's line.
        below, above: (N,) room of each row, as for :func:`stencil`; forward mode needs none.
        value: (N, *D) f(0), which one-sided differences use, detached; it also says device and dtype.
        method: forward-mode: exact; central: two passes, error O(step^2) in every row; one-sided: one pass, O(step),
            downwards wherever there is room.
        step: h of the finite differences.
        autocast: leave forward mode in the autocast it is called in.
        compiled: see :func:`directional_derivative`.

    Raises:
        ConfigError: as :func:`directional_derivative`.
    """
    if method is DerivativeMethod.CENTRAL:
        with full_precision(value):
            return _central(function, stencil(below, above, step))
    zeros = torch.zeros(len(below), device=value.device, dtype=value.dtype)
    if method is DerivativeMethod.FORWARD_MODE:
        with nullcontext() if autocast else torch.autocast(value.device.type, enabled=False):
            return directional_derivative(
                lambda offset: function(offset, None),
                (zeros,),
                (zeros + 1,),
                method=method,
                step=step,
                compiled=compiled,
            )
    room = torch.maximum(below, above).clamp(max=step)
    offset = torch.where((below >= step) | (below > above), -room, room).to(zeros)
    # Every row has its own step, so the difference is taken over a step of 1 and divided afterwards.
    difference = directional_derivative(
        lambda _: function(offset, None), (zeros,), (zeros,), method=method, step=1.0, value=value
    )
    return difference / expand_times(offset, difference)


AGREES = 5e-3
"""Relative error up to which forward mode and central differences are one derivative."""
_SHRINKING = {torch.float64: (1e-4, 1e-5, 1e-6, 1e-7), torch.float32: (1e-3, 2e-4, 5e-5)}


def forward_mode_error(function: Function, primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> float:
    """Relative error of forward mode against central differences of shrinking steps: the least, or the first that
    :data:`AGREES`.

    A step across the kink of a ReLU is wrong by what the slope changes there; with the step fewer kinks are crossed,
    and a right derivative is approached. A wrong one stays as far away. Wide steps are for networks that embed times
    in float32. Below a thousandth of the function's own size a derivative counts as none.
    """
    with torch.no_grad():
        floor = 1e-3 * function(*primals).norm()
    exact = directional_derivative(function, primals, tangents, method=DerivativeMethod.FORWARD_MODE, step=0.0)
    least = float("inf")
    for step in _SHRINKING[primals[0].dtype]:
        central = directional_derivative(function, primals, tangents, method=DerivativeMethod.CENTRAL, step=step)
        least = min(least, float((exact - central).norm() / (central.norm() + floor).clamp_min(1e-12)))
        if least < AGREES:
            break
    return least


@torch.no_grad()
def relative_error(derivative: Tensor, exact: Tensor) -> Tensor:
    """||derivative - exact|| / ||exact||, 0-d, on the device."""
    return (derivative - exact).norm() / exact.norm().clamp_min(torch.finfo(exact.dtype).tiny)


@dataclass(frozen=True)
class Stencil:
    """Three points a row: d f(0) = at_zero f(0) + at_first f(first) + at_second f(second), error O(step^2).

    All (N,) float64 on the host.
    """

    first: Tensor
    second: Tensor
    at_zero: Tensor
    at_first: Tensor
    at_second: Tensor

    def apply(self, zero: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The derivative (N, *D) of values (N, *D); gradients flow through."""
        value = expand_times(self.at_first, first) * first + expand_times(self.at_second, second) * second
        return value + expand_times(self.at_zero, zero) * zero


def stencil(below: Tensor, above: Tensor, step: float) -> Stencil:
    """Central differences where there is room on both sides; elsewhere (-3 f(0) + 4 f(h) - f(2h)) / 2h inwards.

    A row with less room than 2 steps on its wider side takes half of what there is.

    Args:
        below, above: (N,) how far offsets may go down and up, at least 0, float64 on the host.
        step: h.

    Raises:
        ValueError: a row with no room on either side.
    """
    room = torch.maximum(below, above)
    if bool((room <= 0).any()):
        raise ValueError("a difference along a line needs room on one side")
    h = (room / 2).clamp(max=step)
    central = (below >= step) & (above >= step)
    inward = torch.where(above >= below, 1.0, -1.0).to(h)
    slope = torch.where(central, 1.0, inward) / (2 * h)
    return Stencil(
        first=torch.where(central, h, inward * h),
        second=torch.where(central, -h, 2 * inward * h),
        at_zero=torch.where(central, 0.0, -3 * slope),
        at_first=torch.where(central, slope, 4 * slope),
        at_second=-slope,
    )


def _central(function: AlongLine, points: Stencil) -> Tensor:
    """One call for all points; f(0) only where a row leans inwards."""
    n = len(points.first)
    every = torch.arange(n)
    edge = points.at_zero.nonzero().flatten()
    offsets = torch.cat([points.first, points.second, torch.zeros(len(edge), dtype=points.first.dtype)])
    f = function(offsets, torch.cat([every, every, edge]))
    first, second, zero = f[:n], f[n : 2 * n], f[2 * n :]
    derivative = (first - second) / expand_times(2 * points.first, first)
    if edge.numel() == 0:
        return derivative
    rows = edge.to(derivative.device, non_blocking=True)
    slope = expand_times(-points.at_second[edge], zero)
    return derivative.index_copy(0, rows, slope * (4 * first[rows] - 3 * zero - second[rows]))


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Matrix products and convolutions of float32 numbers in float32 (``highest``), or as a device does them faster:
    in TF32 (``high``) or bf16 (``medium``), see ``torch.set_float32_matmul_precision``."""
    allowed, in_convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"  # PyTorch allows it by default
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)
        torch.backends.cudnn.allow_tf32 = in_convolutions


@contextmanager
def full_precision(like: Tensor) -> Iterator[None]:
    """No autocast and no TF32: a difference of two nearly equal outputs keeps few digits otherwise."""
    with float32_products("highest"), torch.autocast(like.device.type, enabled=False):
        yield
