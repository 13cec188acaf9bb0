"""What a sampler promises."""

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import FlowMapSampler, HybridSampler, Sampler, StartTimes, VelocitySampler
from freeflow_core.interfaces.sampler import OnStep
from freeflow_core.math.flow import uniform_grid
from freeflow_core.testing.contracts.base import ComponentContract, count_rows, draws_of, relative_difference
from freeflow_core.testing.exact import GaussianStudent, GaussianTeacher
from freeflow_core.types import Guidance, Samples, describe

_MEAN, _STD = (0.5, -1.0, 0.0), (0.6, 1.4, 1.0)
_ROWS = 8
_KINDS = (VelocitySampler, FlowMapSampler, HybridSampler)


class SamplerContract(ComponentContract):
    """Checks of a sampler, on an exact teacher and student of a Gaussian.

    Attributes:
        num_steps: a number of steps that it can take.
        exact_error: greatest relative error of its end points with 64 steps (or ``num_steps``, for student jumps).
    """

    kind: ClassVar[str] = "sampler"
    num_steps: ClassVar[int | None] = None
    exact_error: ClassVar[float] = 0.05

    def test_is_one_of_three_kinds(self) -> None:
        sampler: Sampler[Any] = self.build()
        names = ", ".join(kind.__name__ for kind in _KINDS)
        self.expect(isinstance(sampler, _KINDS), f"a subclass of {names}", f"a {type(sampler).__name__}")

    def test_default_grid_falls_from_noise_to_data(self) -> None:
        sampler: Sampler[Any] = self.build()
        for steps in (1, 4):
            grid = sampler.default_grid(steps)
            if grid is None:
                continue
            good = grid.shape == (steps + 1,) and grid.dtype is torch.float64 and grid.device.type == "cpu"
            self.expect(good, f"a float64 grid of {steps + 1} times on the host", describe(grid))
            falls = bool((grid.diff() < 0).all()) and float(grid[0]) == 1 and abs(float(grid[-1])) < 1e-12
            self.expect(falls, "times that fall from 1 (noise) to 0 (data)", str(grid.tolist()))

    def test_samples_have_the_shape_and_dtype_of_the_noise(self) -> None:
        for dtype in (torch.float32, torch.float64):
            z = _noise(dtype)
            with self.expect_untouched(z):
                samples = self.run_on(z)
            self.expect(isinstance(samples, Samples), "a freeflow_core.types.Samples", describe(samples))
            self.expect_tensor(samples.x, z.shape, "samples like the noise,", dtype)
            came = "a gradient: put @torch.no_grad() on sample()"
            self.expect(not samples.x.requires_grad, "samples without gradient", came)

    def test_same_noise_same_samples(self) -> None:
        z = _noise()
        advice = "Take fresh noise from draws.noise('name', shape)."
        self.expect_repeatable(lambda: self.run_on(z).x, "sample()", advice)

    def test_rows_do_not_depend_on_each_other(self) -> None:
        z = _noise(torch.float64)
        rows = torch.tensor([5, 2])
        alone = self.run_on(z[rows], rows=rows).x
        self.expect_close(alone, self.run_on(z).x[rows], 1e-3, "samples that do not depend on their batch")

    def test_counts_its_evaluations(self) -> None:
        for weight in (1.0, 2.0):
            asked: list[int] = []
            told = self.run_on(_noise(), weight=weight, asked=asked).num_evaluations
            real, advice = sum(asked) / _ROWS, "An unguided evaluation counts one, a guided one two."
            expected = f"num_evaluations={real:g}, the rows that went through networks per sample (guidance {weight:g})"
            self.expect(abs(told - real) < 1e-9, expected, f"{told:g}", advice)

    def test_reports_its_steps_in_order(self) -> None:
        calls: list[tuple[int, float, tuple[int, ...]]] = []
        z, grid = _noise(), self.grid()
        self.run_on(z, on_step=lambda i, time, x: calls.append((i, float(time), tuple(x.shape))))
        numbers, times = [call[0] for call in calls], [call[1] for call in calls]
        self.expect(numbers == list(range(len(calls))) and calls != [], "on_step from 0 on", f"steps {numbers}")
        agrees = len(times) == len(grid) - 1 and torch.allclose(torch.tensor(times).to(grid), grid[1:], atol=1e-9)
        self.expect(agrees, f"on_step at the grid's times {grid[1:].tolist()}", str(times))
        self.expect(all(call[2] == z.shape for call in calls), f"states {tuple(z.shape)}", str(calls[0][2]))

    def test_a_rising_grid_is_refused(self) -> None:
        rising, advice = self.grid().flip(0), "Check the grid before the first step."
        self.expect_refused(lambda: self.run_on(_noise(), grid=rising), "a grid that rises from 0 to 1", advice)

    def test_reaches_the_data(self) -> None:
        sampler: Sampler[Any] = self.build()
        steps = 64 if isinstance(sampler, VelocitySampler | HybridSampler) else self.steps()
        z = _noise(torch.float64)
        zero = torch.zeros(_ROWS, dtype=torch.float64)
        exact = GaussianTeacher(torch.tensor(_MEAN).to(z), torch.tensor(_STD).to(z)).exact_flow_map(z, zero + 1, zero)
        found, again = (self.run_on(z, grid=uniform_grid(steps), seed=seed).x for seed in (5, 6))
        if isinstance(sampler, FlowMapSampler) and not torch.equal(found, again):
            self.skip("it adds fresh noise between its jumps, so its samples follow no one path")
        error = relative_difference(found, exact)
        came = "the noise itself" if relative_difference(found, z) < 1e-6 else f"a relative error of {error:.2g}"
        advice = "A step from t to s <= t is x + (s - t) v, or x - (t - s) u."
        self.expect(error < self.exact_error, f"the end of the exact flow, to {self.exact_error:.0%}", came, advice)

    def test_students_that_cannot_are_refused(self) -> None:
        if not isinstance(self.build(), FlowMapSampler):
            self.skip("it does not chain jumps of a student")
        ask = partial(self.run_on, _noise(), grid=uniform_grid(4), start_times=StartTimes.PRIOR)
        advice = "Compare model.start_times with StartTimes.PRIOR when the grid has several steps."
        self.expect_refused(ask, "four steps of a student with start_times=prior", advice)

    def steps(self) -> int:
        """Steps that it can take: ``num_steps``, or the first of 4, 2, 1 that it does not refuse."""
        if self.num_steps is not None:
            return self.num_steps
        for steps in (4, 2):
            try:
                self.run_on(_noise(), grid=uniform_grid(steps))
                return steps
            except ConfigError:
                continue
        return 1

    def grid(self) -> Tensor:
        """An uneven grid with that many steps: a sampler follows the grid it is given."""
        return uniform_grid(self.steps()) ** 1.5

    def run_on(
        self,
        z: Tensor,
        *,
        grid: Tensor | None = None,
        weight: float = 1.0,
        rows: Tensor | None = None,
        on_step: OnStep | None = None,
        start_times: StartTimes = StartTimes.ANY,
        seed: int = 5,
        asked: list[int] | None = None,
    ) -> Samples:
        """Samples from the noise ``z``; ``asked`` collects the rows of each pass through a network."""
        mean, std = torch.tensor(_MEAN).to(z), torch.tensor(_STD).to(z)
        teacher, student, sampler = GaussianTeacher(mean, std), GaussianStudent(mean, std), self.build()
        student.start_times = start_times
        counted = [] if asked is None else asked
        count_rows(teacher, counted)
        student.register_forward_pre_hook(lambda module, inputs: counted.append(len(inputs[0])))
        model: Any = (student, teacher)
        if isinstance(sampler, VelocitySampler | FlowMapSampler):
            model = teacher if isinstance(sampler, VelocitySampler) else student
        draws = draws_of(_ROWS, z.dtype, seed=seed)
        draws = draws if rows is None else draws.rows(rows)
        guidance = Guidance(torch.full((len(z),), weight, dtype=torch.float64))
        samples: Samples = sampler.sample(
            model, z, self.grid() if grid is None else grid, None, guidance, draws, on_step
        )
        return samples


def _noise(dtype: torch.dtype = torch.float32) -> Tensor:
    return draws_of(_ROWS, dtype).noise("prior", (len(_MEAN),))
