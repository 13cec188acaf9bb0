"""Whether a field is the velocity of its own samples' path, judged from the field alone."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher
from torch import nn

from freeflow_core import api
from freeflow_core.interfaces import Teacher
from freeflow_core.math.calibration import (
    GOOD,
    Field,
    Reading,
    calibrate,
    diagnose,
    draw_noises,
    enough_rows,
    integrate,
    miscalibration,
)
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.testing.exact import GaussianTeacher
from freeflow_core.types import Guidance

ANGLES = torch.arange(8, dtype=torch.float64) * math.pi / 4
RING = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
CENTRES = torch.randn(10, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TEACHERS: dict[str, Callable[[], Teacher]] = {
    "digits": lambda: api.load_teacher("digits"),
    "ring": lambda: GaussianMixtureTeacher(RING, stds=torch.full((8,), 0.1)),
    "two-modes": lambda: GaussianMixtureTeacher(torch.tensor([[-1.0], [1.0]]), stds=torch.tensor([0.3, 0.3])),
    "mixture-64": lambda: GaussianMixtureTeacher(0.8 * CENTRES, stds=torch.full((10,), 0.3)),
    "gaussian": lambda: GaussianTeacher(torch.tensor([0.5, -1.0]), torch.tensor([0.5, 2.0])),
    "like-noise": lambda: GaussianTeacher(torch.zeros(64), torch.ones(64)),
    "wide": lambda: GaussianTeacher(torch.zeros(2), torch.full((2,), 5.0)),
    "large": lambda: GaussianTeacher(torch.zeros(4, 32, 32), torch.full((4, 32, 32), 0.9)),
}
MISTAKES: dict[str, tuple[Reading, Callable[[Field], Field]]] = {
    "sign": (Reading.SIGN, lambda v: lambda x, t: -v(x, t)),
    "time": (Reading.TIME, lambda v: lambda x, t: v(x, 1 - t)),
    "both": (Reading.BOTH, lambda v: lambda x, t: -v(x, 1 - t)),
    "large-states": (Reading.HALF, lambda v: lambda x, t: v(2 * x, t)),
    "small-states": (Reading.DOUBLE, lambda v: lambda x, t: v(x / 2, t)),
    "squared-time": (Reading.ROOT, lambda v: lambda x, t: v(x, t**2)),
    "time-of-1000": (Reading.THOUSAND, lambda v: lambda x, t: v(x, t / 1000)),
    "large-answer": (Reading.SCALED, lambda v: lambda x, t: 3 * v(x, t)),
    "small-answer": (Reading.SCALED, lambda v: lambda x, t: v(x, t) / 2),
    "plus-state": (Reading.LESS, lambda v: lambda x, t: v(x, t) + x),
    "less-state": (Reading.PLUS, lambda v: lambda x, t: v(x, t) - x),
    "noise": (Reading.NOISE, lambda v: lambda x, t: x + (1 - t).reshape(-1, *[1] * (x.ndim - 1)) * v(x, t)),
    "data": (Reading.DATA, lambda v: lambda x, t: x - t.reshape(-1, *[1] * (x.ndim - 1)) * v(x, t)),
}


def field_of(teacher, seed=0):
    rows = enough_rows(teacher.sample_shape)
    condition = teacher.sample_condition(PhiloxDraws(seed, torch.arange(rows)))
    return lambda x, t: teacher.velocity(x, t, condition)


def look(field, teacher, seed=0):
    shape = tuple(teacher.sample_shape)
    return diagnose(field, shape, PhiloxDraws(seed, torch.arange(enough_rows(shape))))


@pytest.mark.parametrize("name", TEACHERS)
def test_a_right_field_passes_and_costs_one_look(name):
    teacher = TEACHERS[name]()
    for seed in range(1 if name == "digits" else 3):
        found = look(field_of(teacher, seed), teacher, seed)
        assert not found.is_wrong
        assert found.given.at_least < GOOD
        assert set(found.calibrations) == {Reading.AS_GIVEN}


TURNED = ("sign", "time", "both", "large-states", "small-states", "squared-time")
SCALED = ("time-of-1000", "large-answer", "small-answer", "plus-state", "less-state", "noise", "data")


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        *itertools.product(["ring", "two-modes"], TURNED),
        *itertools.product(["ring", "gaussian"], SCALED),
        *itertools.product(["digits"], ["large-states", *SCALED]),
    ],
)
def test_a_wrong_field_is_named(name, mistake):
    teacher = TEACHERS[name]()
    reading, change = MISTAKES[mistake]
    found = look(change(field_of(teacher)), teacher)
    assert found.is_wrong
    assert found.reason is not None
    assert reading in found.fitting
    assert found.calibrations[reading].value < GOOD


@pytest.mark.parametrize("name", ["like-noise", "mixture-64", "narrow", "large"])
def test_predicted_noise_is_named_where_its_residual_hardly_shows_it(name):
    """Data as wide as the noise or narrower: its samples shrink, and so does what it misses."""
    teacher = GaussianTeacher(torch.zeros(64), torch.full((64,), 0.5)) if name == "narrow" else TEACHERS[name]()
    for seed in range(2):
        found = look(MISTAKES["noise"][1](field_of(teacher, seed)), teacher, seed)
        assert found.is_off
        assert found.fitting == (Reading.NOISE,)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_field_of_zeros_is_no_velocity(name):
    teacher = TEACHERS[name]()
    found = look(lambda x, t: torch.zeros_like(x), teacher)
    assert found.is_wrong
    assert found.reason is not None
    assert found.given.at_least > 0.3


def test_a_large_state_costs_176_rows():
    teacher, rows = TEACHERS["large"](), 0

    def counted(x, t):
        nonlocal rows
        rows += len(x)
        assert (t.dtype, t.device) == (x.dtype, x.device)
        return teacher.velocity(x, t, None)

    look(counted, teacher)
    assert rows == 176


def test_guided_and_hardly_trained_fields_are_not_refused():
    """They are not the velocity of their own path, so they may be warned of, but nothing says that they are read wrongly."""
    labelled = GaussianMixtureTeacher(RING[:4], stds=torch.full((4,), 0.3), labels=torch.arange(4))
    rows = enough_rows((2,))
    condition = labelled.sample_condition(PhiloxDraws(0, torch.arange(rows)))
    for weight in (1.5, 3.0):
        weights = Guidance(torch.full((rows,), weight, dtype=torch.float64)).weight
        assert look(lambda x, t, w=weights: labelled.guided_velocity(x, t, condition, w), labelled).reason is None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for width in (8, 64):
            network = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, 2))
            found = look(lambda x, t, f=network: f(torch.cat([x, t[:, None]], 1)), labelled)
            assert found.reason is None


def test_a_centred_gaussian_cannot_tell_both_from_none():
    """The field of N(0, s^2), turned both ways, is the field of N(0, 1 / s^2) exactly."""
    narrow = GaussianTeacher(torch.zeros(2), torch.full((2,), 0.5))
    wide = GaussianTeacher(torch.zeros(2), torch.full((2,), 2.0))
    x, t = torch.randn(8, 2), torch.linspace(0.1, 0.9, 8)
    both = Reading.BOTH.of(lambda x, t: narrow.velocity(x, t, None))
    torch.testing.assert_close(both(x, t), wide.velocity(x, t, None))
    assert not look(both, narrow).is_wrong
    assert look(lambda x, t: -narrow.velocity(x, t, None), narrow).is_wrong


@pytest.mark.parametrize("wrong", [lambda v, x: x - v, lambda v, x: v / 0, lambda v, x: 1e20 * v])
def test_what_no_reading_explains_is_wrong_without_a_reason(wrong):
    teacher = TEACHERS["ring"]()
    found = look(lambda x, t: wrong(teacher.velocity(x, t, None), x), teacher)
    assert found.is_wrong
    assert found.reason is None


def test_the_estimate_has_no_bias_and_an_honest_error():
    """Over many draws the mean of the estimate for an exact field is 0 and its deviation is ``error``."""
    teacher, found = TEACHERS["gaussian"](), []
    for seed in range(200):
        draws = PhiloxDraws(seed, torch.arange(24))
        z, noises = draw_noises((2,), draws)
        x = teacher.exact_flow_map(z, torch.ones(24), torch.zeros(24))
        found.append(calibrate(lambda x, t: teacher.velocity(x, t, None), x, {0.5: noises[0.5]}))
    values = torch.tensor([calibration.value for calibration in found])
    errors = torch.tensor([calibration.error for calibration in found])
    assert abs(float(values.mean())) < 4 * float(values.std()) / len(values) ** 0.5
    assert 0.5 < float(values.std() / errors.square().mean().sqrt()) < 2


def test_a_known_residual_is_measured():
    """With target = v + a x_t + b + white noise, a^2 var(x_t) + b^2 of the residual is predictable."""
    generator = torch.Generator().manual_seed(0)
    v, x_t, white = torch.randn(3, 4_000, 3, generator=generator, dtype=torch.float64)
    found = miscalibration(v, x_t, v + 0.5 * x_t + 0.2 + white)
    assert found.value == pytest.approx(0.25 + 0.04, abs=0.03)
    assert miscalibration(v, x_t, v + white).value == pytest.approx(0, abs=3e-3)
    assert miscalibration(v * math.nan, x_t, v).at_least == math.inf


def test_midpoint_steps_follow_the_exact_map():
    teacher = TEACHERS["gaussian"]()
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    exact = teacher.exact_flow_map(z, torch.ones(64), torch.zeros(64))
    states = integrate(lambda x, t: teacher.velocity(x, t, None), z, 32)
    assert len(states) == 33
    torch.testing.assert_close(states[-1], exact, rtol=0, atol=1e-2)
