"""What an interpolant promises."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from freeflow_core.engine.describe import describe
from freeflow_core.interfaces import Interpolant
from freeflow_core.math.broadcast import expand_times
from freeflow_core.testing.contracts.base import ComponentContract
from freeflow_core.testing.contracts.tensors import draws_of, relative_difference

_ROWS = 9


class InterpolantContract(ComponentContract):
    """Checks of an interpolant."""

    kind: ClassVar[str] = "interpolant"

    def test_data_at_zero_and_noise_at_one(self) -> None:
        """alpha(0) = 1, sigma(0) = 0; alpha(1) = 0, sigma(1) = 1, to 1 %."""
        path = self.path()
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        found = (*path.alpha(ends).tolist(), *path.sigma(ends).tolist())
        right = all(abs(a - b) < 1e-2 for a, b in zip(found, (1.0, 0.0, 0.0, 1.0), strict=True))
        reversed_time = all(abs(a - b) < 1e-2 for a, b in zip(found, (0.0, 1.0, 1.0, 0.0), strict=True))
        self.expect(
            right,
            "alpha = 1, sigma = 0 at t = 0 (data) and alpha = 0, sigma = 1 at t = 1 (noise)",
            "a path whose time runs the wrong way, with data at t = 1"
            if reversed_time
            else "alpha(0), alpha(1), sigma(0), sigma(1) = " + ", ".join(f"{value:.3g}" for value in found),
        )

    def test_mixes_data_and_noise(self) -> None:
        """x_t = alpha(t) x + sigma(t) n, one time a row, in the dtype of the states."""
        path = self.path()
        for dtype in (torch.float32, torch.float64):
            x, noise, t = _inputs(dtype)
            x_t = path.interpolate(x, noise, t)
            self.expect(x_t.shape == x.shape and x_t.dtype is dtype, f"x_t like the data, {describe(x)}", describe(x_t))
            expected = expand_times(path.alpha(t), x) * x + expand_times(path.sigma(t), x) * noise
            error = relative_difference(x_t, expected)
            self.expect(error < 1e-4, "x_t = alpha(t) x + sigma(t) n", f"a relative difference of {error:.2g}")

    def test_velocity_is_the_derivative_in_time(self) -> None:
        """dx_t/dt along the path of one pair, against central differences in float64."""
        path = self.path()
        x, noise, t = _inputs(torch.float64)
        step = 1e-6
        expected = (path.interpolate(x, noise, t + step) - path.interpolate(x, noise, t - step)) / (2 * step)
        v = path.velocity(x, noise, t)
        error, opposite = relative_difference(v, expected), relative_difference(-v, expected)
        self.expect(
            error < 1e-5,
            "velocity = dx_t/dt, from data to noise",
            "minus that: its sign runs the wrong way" if opposite < 1e-5 else f"a relative difference of {error:.2g}",
        )

    def test_noise_grows(self) -> None:
        """sigma / alpha rises with t, so that every noise level is passed once."""
        path = self.path()
        t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
        ratio = path.sigma(t) / path.alpha(t)
        self.expect(bool((ratio.diff() > 0).all()), "sigma(t) / alpha(t) that rises with t", "one that does not")

    def path(self) -> Interpolant:
        """The interpolant."""
        built: Interpolant = self.build()
        return built


def _inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    draws = draws_of(_ROWS, dtype)
    t = torch.linspace(0.1, 0.9, _ROWS, dtype=torch.float64).to(dtype)
    return draws.noise("x", (2, 3)), draws.noise("n", (2, 3)), t
