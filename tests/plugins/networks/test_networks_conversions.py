"""Every convention of an exact network gives the exact velocity of the linear path, and the wrong one does not."""

import dataclasses
import itertools

import pytest
import torch
from freeflow_networks.config import OwnNetworkOptions
from freeflow_networks.teacher import convention_from
from hypothesis import given, settings
from hypothesis import strategies as st
from networks_support import ExactNetwork, ddpm_tables

from freeflow_core.math.conversions import Convention, Prediction, Sign, TimeDirection, ask, velocity_of
from freeflow_core.math.schedules import SCHEDULES, named_schedule
from freeflow_core.testing.exact import GaussianTeacher

SIGNED = ("velocity", "v-prediction")
COMBINATIONS = [
    (prediction, schedule, direction, sign)
    for prediction, schedule, direction, sign in itertools.product(
        ("data", "noise", "velocity", "v-prediction", "score"),
        SCHEDULES,
        ("data-at-0", "data-at-1"),
        ("noise-minus-data", "data-minus-noise"),
    )
    if (sign == "noise-minus-data" or prediction in SIGNED)
    and not (prediction == "velocity" and schedule.startswith("ddpm"))
    and not (schedule == "ve" and direction == "data-at-1")
]


def convention(prediction, schedule, direction, sign, scale=None):
    own = Sign(sign) if prediction in SIGNED else None
    named = named_schedule(schedule)
    return Convention(Prediction(prediction), TimeDirection(direction), own, named, schedule, scale)


def velocity(network, read, x_t, t):
    question = ask(read, x_t, t)
    return velocity_of(read, network(question.x, question.time), x_t, question.t)


def case(read, seed, mean=(0.5, -1.0), std=(0.5, 2.0)):
    generator = torch.Generator().manual_seed(seed)
    low, high = read.time_range
    t = low + (high - low) * torch.rand(6, generator=generator, dtype=torch.float64)
    x_t = 2 * torch.randn(6, 2, generator=generator, dtype=torch.float64)
    exact = GaussianTeacher(torch.tensor(mean).double(), torch.tensor(std).double())
    return x_t, t, exact.velocity(x_t, t, None)


@pytest.mark.parametrize("combination", COMBINATIONS, ids="/".join)
@settings(max_examples=8)
@given(
    seed=st.integers(0, 10_000), mean=st.floats(-2, 2), std=st.floats(0.2, 3), scale=st.sampled_from([None, 1.0, 999.0])
)
def test_an_exact_network_becomes_the_exact_velocity(combination, seed, mean, std, scale):
    read = convention(*combination, scale)
    x_t, t, exact = case(read, seed, (mean, -1.0), (std, 0.7))
    network = ExactNetwork(*combination, read.scale, (mean, -1.0), (std, 0.7))
    found = velocity(network, read, x_t, t)
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max().clamp_min(1)


@pytest.mark.parametrize("combination", [c for c in COMBINATIONS if c[0] in SIGNED], ids="/".join)
def test_the_other_sign_is_the_opposite_answer(combination):
    read = convention(*combination)
    wrong = dataclasses.replace(read, sign=next(sign for sign in Sign if sign is not read.sign))
    x_t, t, exact = case(read, 0)
    found = velocity(ExactNetwork(*combination, read.scale), wrong, x_t, t)
    assert (found - exact).norm() > 0.5 * exact.norm()


@pytest.mark.parametrize("combination", [c for c in COMBINATIONS if c[1] != "ve"], ids="/".join)
def test_the_other_direction_of_time_is_another_field(combination):
    read = convention(*combination)
    other = next(direction for direction in TimeDirection if direction is not read.time_direction)
    wrong = dataclasses.replace(read, time_direction=other)
    x_t, t, exact = case(read, 0)
    found = velocity(ExactNetwork(*combination, read.scale), wrong, x_t, t)
    assert (found - exact).norm() > 0.1 * exact.norm()


@pytest.mark.parametrize("scaled", [False, True])
def test_discrete_steps_come_out_at_their_own_times(scaled):
    schedule = named_schedule("ddpm-scaled-linear" if scaled else "ddpm")
    alphas, sigmas = ddpm_tables(scaled)
    t = sigmas / (alphas + sigmas)
    steps = torch.arange(1000, dtype=torch.float64)
    assert torch.allclose(schedule.own_time(t) * 1000, steps, atol=1e-6)
    assert torch.allclose(schedule.alpha(steps / 1000), alphas, atol=1e-9)
    assert torch.allclose(schedule.sigma(steps / 1000), sigmas, atol=1e-9)
    assert schedule.default_scale == 1000


@pytest.mark.parametrize("name", SCHEDULES)
@given(st.floats(0.02, 0.98))
def test_a_schedule_agrees_with_the_linear_path_on_the_signal_to_noise_ratio(name, t):
    schedule = named_schedule(name)
    held = torch.tensor([t], dtype=torch.float64).clamp(*schedule.time_range)
    tau = schedule.own_time(held)
    assert torch.allclose(schedule.sigma(tau) / schedule.alpha(tau), held / (1 - held), rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "ve"])
@given(st.floats(0.05, 0.95))
def test_rates_are_derivatives(name, tau):
    schedule, h = named_schedule(name), 1e-5
    at = torch.tensor([tau - h, tau, tau + h], dtype=torch.float64)
    for values, rate in zip((schedule.alpha(at), schedule.sigma(at)), schedule.rates(at), strict=True):
        assert torch.allclose((values[2] - values[0]) / (2 * h), rate[1], rtol=1e-4, atol=1e-6)


def test_unit_variance_input_divides_by_the_path_s_spread():
    read = Convention(schedule=named_schedule("ve"), schedule_name="ve", data_std=0.5)
    t = torch.tensor([0.5, 0.8], dtype=torch.float64)
    x_t = torch.ones(2, 3, dtype=torch.float64)
    sigma = t / (1 - t)
    expected = (1 + sigma) / (0.25 + sigma**2).sqrt()
    assert torch.allclose(ask(read, x_t, t).x, expected[:, None] * x_t)


def test_times_outside_the_range_are_held():
    read = Convention(Prediction.DATA)
    question = ask(read, torch.zeros(2, 2), torch.tensor([0.0, 1.0]))
    assert question.t.tolist() == [1e-3, 1.0]
    assert Convention(Prediction.NOISE).time_range == (0.0, 1 - 1e-3)
    assert Convention(Prediction.NOISE, low=0.2, high=0.9).time_range == (0.2, 0.9)


@given(st.sampled_from(COMBINATIONS), st.sampled_from(COMBINATIONS), st.sampled_from([None, 1.0, 999.0]))
def test_applying_the_differences_gives_the_other_convention(mine, theirs, scale):
    given_one, other = convention(*mine, scale), convention(*theirs)
    options = {
        "prediction": given_one.prediction.value,
        "time_direction": given_one.time_direction.value,
        "sign": None if given_one.sign is None else given_one.sign.value,
        "schedule": given_one.schedule_name,
        "time_scale": given_one.time_scale,
    } | given_one.differences(other)
    OwnNetworkOptions(sample_shape=(2,), **options)  # a configuration that is accepted
    built = convention_from(OwnNetworkOptions(sample_shape=(2,), **options))
    assert (built.prediction, built.time_direction) == (other.prediction, other.time_direction)
    assert (built.schedule_name, built.scale) == (other.schedule_name, other.scale)
    assert built.own_sign is other.own_sign or other.prediction.value not in SIGNED
