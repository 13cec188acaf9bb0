"""Order of convergence, honest counting, guidance rules and independence of the velocity samplers."""

import pytest
import torch
from freeflow_samplers.config import AdaptiveConfig, EulerConfig, HeunConfig
from freeflow_samplers.velocity import AdaptiveSampler, EulerSampler, HeunSampler
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Teacher
from freeflow_core.math.flow import uniform_grid
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.testing.exact import GaussianTeacher
from freeflow_core.types import Guidance

F64 = torch.float64
N = 12


def watched(teacher):
    """The teacher, and (time, rows, dtype) of every call of it."""
    calls, velocity = [], teacher.velocity

    def watch(x_t, t, condition):
        assert (t.dtype, t.device) == (x_t.dtype, x_t.device)
        assert t.unique().numel() == 1
        assert not torch.is_grad_enabled()
        calls.append((round(float(t[0]), 9), len(x_t), x_t.dtype))
        return velocity(x_t, t, condition)

    teacher.velocity = watch
    return teacher, calls


def noise(n=N, shape=(2,), dtype=F64):
    return PhiloxDraws(0, torch.arange(n), dtype=dtype).noise("z", shape)


def gaussian():
    return GaussianTeacher(torch.tensor([0.7, -1.2], dtype=F64), torch.tensor([0.4, 2.0], dtype=F64))


def classes():
    return GaussianMixtureTeacher(
        torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), stds=torch.tensor([0.6, 0.9]), labels=torch.tensor([0, 1])
    )


def unguided(n=N):
    return Guidance(torch.ones(n, dtype=F64))


def euler(**options):
    return EulerSampler(EulerConfig(**options))


def heun(**options):
    return HeunSampler(HeunConfig(**options))


def order(sampler, teacher, exact, condition=None, guidance=None, steps=(32, 64, 128)):
    errors = [
        (sampler.sample(teacher, noise(), uniform_grid(k), condition, guidance or unguided()).x - exact).norm()
        for k in steps
    ]
    return float(torch.log2(errors[-2] / errors[-1]))


def reference(teacher, z, condition, guidance, start=1.0, end=0.0):
    t, s = torch.full((len(z),), start, dtype=F64), torch.full((len(z),), end, dtype=F64)
    return teacher.reference_flow_map(z, t, s, condition, guidance)


@pytest.mark.parametrize(
    ("sampler", "high", "expected"),
    [
        (euler(), 1.0, 1),
        (heun(), 1.0, 2),
        # The interval's end lies on the grid: deciding at the step's start keeps every step on one smooth field.
        (heun(), 0.5, 2),
        (heun(decide_at="evaluation"), 0.5, 1),
    ],
)
def test_order_on_a_guided_teacher(sampler, high, expected):
    teacher, label = classes(), torch.arange(N) % 2
    guidance = Guidance(torch.linspace(1, 3, N, dtype=F64), 0.0, high)
    exact = reference(teacher, noise(), label, guidance)
    assert order(sampler, teacher, exact, label, guidance) == pytest.approx(expected, abs=0.15)


def test_one_euler_step_is_noise_minus_velocity():
    teacher, z = gaussian(), noise()
    samples = euler().sample(teacher, z, uniform_grid(1), None, unguided())
    expected = z - teacher.velocity(z, torch.ones(N, dtype=F64), None)
    torch.testing.assert_close(samples.x, expected, rtol=0, atol=0)
    assert samples.num_evaluations == 1


@pytest.mark.parametrize(
    ("sampler", "per_step", "last"), [(euler(), 1, 1), (heun(), 2, 2), (heun(final_euler=True), 2, 1)]
)
def test_evaluations_are_counted_exactly(sampler, per_step, last):
    (spy, calls), label = watched(classes()), torch.arange(N) % 2
    samples = sampler.sample(spy, noise(), uniform_grid(5), label, unguided())
    assert len(calls) == samples.num_evaluations == 4 * per_step + last
    calls.clear()
    weight = torch.ones(N, dtype=F64)
    weight[:3] = 2.0
    samples = sampler.sample(spy, noise(), uniform_grid(5), label, Guidance(weight, 0.5, 0.8))
    assert samples.num_evaluations == pytest.approx(sum(rows for _, rows, _ in calls) / N, abs=1e-12)
    assert samples.num_evaluations > 4 * per_step + last


def guided_calls(sampler, guidance, steps=5):
    spy, calls = watched(classes())
    sampler.sample(spy, noise(), uniform_grid(steps), torch.arange(N) % 2, guidance)
    return [(time, rows == 2 * N) for time, rows, _ in calls]


def test_guidance_interval_is_closed_and_decided_at_the_step_start():
    guidance = Guidance(torch.full((N,), 2.0, dtype=F64), 0.4, 0.8)
    assert guided_calls(euler(), guidance) == [(1.0, False), (0.8, True), (0.6, True), (0.4, True), (0.2, False)]
    pairs = [(1.0, 0.8, False), (0.8, 0.6, True), (0.6, 0.4, True), (0.4, 0.2, True), (0.2, 0.0, False)]
    assert guided_calls(heun(), guidance) == [(t, g) for a, b, g in pairs for t in (a, b)]
    own_time = [(t, 0.4 <= t <= 0.8) for a, b, _ in pairs for t in (a, b)]
    assert guided_calls(heun(decide_at="evaluation"), guidance) == own_time


@pytest.mark.parametrize("steps", [3, 10])
def test_rounding_of_the_grid_does_not_open_the_interval(steps):
    """Grid times such as 1 - 0.1 * 7 miss the number 0.3 by one bit; they still are the interval's end."""
    for edge in range(1, steps):
        guidance = Guidance(torch.full((N,), 2.0, dtype=F64), edge / steps, edge / steps)
        assert sum(guided for _, guided in guided_calls(euler(), guidance, steps)) == 1


def test_final_euler_changes_the_last_step_alone():
    teacher, seen = gaussian(), {}
    for final in (False, True):
        seen[final] = []
        heun(final_euler=final).sample(
            teacher, noise(), uniform_grid(4), None, unguided(), on_step=lambda i, t, x, f=final: seen[f].append(x)
        )
    assert all(torch.equal(a, b) for a, b in zip(seen[False][:3], seen[True][:3], strict=True))
    x, t = seen[True][2], torch.full((N,), 0.25, dtype=F64)
    torch.testing.assert_close(seen[True][3], x - 0.25 * teacher.velocity(x, t, None))


class WeightedTeacher(Teacher):
    """A teacher with a weight, which says what precision it computes in."""

    def __init__(self, dtype):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones((), dtype=dtype))
        self.sample_shape, self.seen = (2,), set()

    def velocity(self, x_t, t, condition):
        self.seen.add(x_t.dtype)
        assert t.dtype is torch.promote_types(x_t.dtype, torch.float32)  # bf16 would round times to 1 / 256
        return self.weight * x_t


@pytest.mark.parametrize(
    ("network", "option", "state"),
    [
        (torch.float32, "float32", torch.float32),
        (torch.float32, "float64", torch.float64),
        (torch.float64, "float32", torch.float64),
        (torch.bfloat16, "float32", torch.float32),
    ],
)
@pytest.mark.parametrize("make", [euler, heun, lambda **o: AdaptiveSampler(AdaptiveConfig(**o))])
def test_dtypes_of_state_and_network(make, network, option, state):
    teacher, states = WeightedTeacher(network), set()
    z, weight, note = noise(dtype=torch.float32), Guidance(torch.ones(N)), lambda i, t, x: states.add(x.dtype)
    samples = make(state_dtype=option).sample(teacher, z, uniform_grid(2), None, weight, on_step=note)
    assert (teacher.seen, states, samples.x.dtype) == ({network}, {state}, torch.float32)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-8])
def test_adaptive_meets_its_tolerance_and_counts(tolerance):
    label, z = torch.arange(N) % 2, noise()
    guidance = Guidance(torch.linspace(1, 3, N, dtype=F64), 0.25, 0.6)
    spy, calls = watched(classes())
    samples = AdaptiveSampler(AdaptiveConfig(rtol=tolerance, atol=tolerance)).sample(
        spy, z, uniform_grid(1), label, guidance
    )
    error = (samples.x - reference(classes(), z, label, guidance)).abs().max()
    assert error < 30 * tolerance
    assert samples.num_evaluations == pytest.approx(sum(rows for _, rows, _ in calls) / N)
    guided = {time for time, rows, _ in calls if rows > N}
    assert 0.25 <= min(guided) <= max(guided) <= 0.6


def test_adaptive_gives_up_with_advice():
    with pytest.raises(ConfigError, match="Loosen the tolerances"):
        AdaptiveSampler(AdaptiveConfig(rtol=1e-9, atol=1e-9, max_steps=2)).sample(
            gaussian(), noise(), uniform_grid(1), None, unguided()
        )


def test_bad_grids_are_refused():
    wrong = ([1.0, 0.5, 0.5, 0.0], [1.0, -0.1], [1.0, float("nan"), 0.0], [[1.0, 1.0], [1.0, 1.0]])
    for grid in (*(torch.tensor(times, dtype=F64) for times in wrong), torch.tensor([1.0, 0.0])):
        with pytest.raises(ConfigError, match="A time grid must"):
            euler().sample(gaussian(), noise(), grid, None, unguided())


def test_guidance_must_have_a_weight_per_sample():
    with pytest.raises(ValueError, match="one weight for each of 12"):
        euler().sample(gaussian(), noise(), uniform_grid(1), None, unguided(3))


def test_parts_of_the_way():
    teacher, z = gaussian(), noise()
    grid = uniform_grid(200, start=0.8, end=0.3)
    exact = teacher.exact_flow_map(z, torch.full((N,), 0.8, dtype=F64), torch.full((N,), 0.3, dtype=F64))
    torch.testing.assert_close(heun().sample(teacher, z, grid, None, unguided()).x, exact, rtol=1e-4, atol=1e-4)
