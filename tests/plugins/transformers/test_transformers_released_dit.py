"""DiT as a flow teacher: exact algebra on Gaussian data, and the family's own sampler."""

import math

import pytest
import torch
from freeflow_transformers.config import DiTTeacherConfig
from freeflow_transformers.teachers import NoiseTeacher, TransformerTeacher
from safetensors.torch import load_file

from freeflow_core.config import ComponentChoice
from freeflow_core.engine.build import Builder
from freeflow_core.errors import ConfigError
from freeflow_core.math.conversions import ask
from freeflow_core.math.flow import expand_times
from freeflow_core.math.schedules import DiscreteSchedule
from freeflow_core.testing.exact import GaussianTeacher
from freeflow_core.types import Guidance

SCHEDULE = DiscreteSchedule.linear(1000, 1e-4, 0.02)
MEAN = torch.tensor([0.4, -1.5, 0.0], dtype=torch.float64)
STD = torch.tensor([0.3, 2.0, 1.0], dtype=torch.float64)


def exact_noise(x_vp, alpha, sigma):
    """E[e | x_vp] for x ~ N(MEAN, STD^2) and x_vp = alpha x + sigma e."""
    alpha, sigma = expand_times(alpha, x_vp), expand_times(sigma, x_vp)
    return sigma * (x_vp - alpha * MEAN) / (alpha.square() * STD.square() + sigma.square())


def test_the_ends_are_those_of_the_published_schedule():
    low, high = SCHEDULE.time_range
    assert low == pytest.approx(0.0099, abs=1e-4)
    squared = math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(1000))
    assert high == pytest.approx(math.sqrt(1 - squared) / (math.sqrt(squared) + math.sqrt(1 - squared)), rel=1e-12)


@pytest.fixture
def exact_teacher(make_network, monkeypatch):
    """A DiT whose network answers the exact noise of Gaussian pixels, from the step it is fed."""
    network = make_network(sample_shape=(3, 2, 2), prediction="noise", learn_sigma=True, dtype=torch.float64)
    teacher = NoiseTeacher(network, SCHEDULE)

    def forward(x_vp, step, condition):
        alpha, sigma = SCHEDULE.alpha(step / 1000), SCHEDULE.sigma(step / 1000)
        noise = exact_noise(x_vp.movedim(1, -1), alpha, sigma).movedim(-1, 1)
        return torch.cat([noise, torch.full_like(noise, torch.nan)], dim=1)  # the variance must not be looked at

    monkeypatch.setattr(teacher.network, "forward", forward)
    return teacher


def exact_field(x, t):
    exact = GaussianTeacher(MEAN[:, None, None].expand(3, 2, 2), STD[:, None, None].expand(3, 2, 2))
    return exact.velocity(x, t, None)


def test_the_whole_teacher_is_exact_between_its_ends(exact_teacher, states):
    t = torch.linspace(*exact_teacher.time_range, 40, dtype=torch.float64)
    x = states(40, (3, 2, 2), torch.float64)
    v = exact_teacher.velocity(x, t, torch.zeros(40, dtype=torch.long))
    torch.testing.assert_close(v, exact_field(x, t), rtol=1e-6, atol=1e-6)


def test_beyond_its_ends_the_field_is_continued_constantly(exact_teacher, states):
    low, high = exact_teacher.time_range
    x, labels = states(2, (3, 2, 2), torch.float64), torch.zeros(2, dtype=torch.long)
    outside = exact_teacher.velocity(x, torch.tensor([0.0, 1.0], dtype=torch.float64), labels)
    ends = exact_teacher.velocity(x, torch.tensor([low, high], dtype=torch.float64), labels)
    assert torch.equal(outside, ends)
    torch.testing.assert_close(outside, exact_field(x, torch.tensor([low, high], dtype=torch.float64)))
    just = torch.tensor([math.nextafter(low, 1), math.nextafter(high, 0)], dtype=torch.float64)
    torch.testing.assert_close(exact_teacher.velocity(x, just, labels), ends, rtol=1e-9, atol=1e-9)


def test_sampling_from_one_ends_where_the_exact_flow_does(exact_teacher, registry):
    """A sampler starts at t = 1, past the last step; for a good network the continuation costs little."""
    z = torch.randn(64, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampler = Builder(registry, torch.device("cpu"), 0).build("sampler", ComponentChoice(name="heun"))
    grid = torch.linspace(1, 0, 101, dtype=torch.float64)
    guidance = Guidance(torch.ones(64, dtype=torch.float64))
    x = sampler.sample(exact_teacher, z, grid, torch.zeros(64, dtype=torch.long), guidance).x
    exact = MEAN[:, None, None] + STD[:, None, None] * z
    assert (x - exact).norm() / exact.norm() < 0.01


@pytest.fixture
def dit(golden, registry):
    builder = Builder(registry, torch.device("cpu"), 0)
    teacher = builder.teacher(
        ComponentChoice(name="dit", options={"checkpoint": str(golden / "a-dit.pt"), "num_heads": 4})
    )
    assert isinstance(teacher, NoiseTeacher)
    return teacher


def native_times(steps):
    """Linear times of the schedule's own steps."""
    tau = steps.double() / 1000
    alpha, sigma = SCHEDULE.alpha(tau), SCHEDULE.sigma(tau)
    return sigma / (alpha + sigma)


@torch.no_grad()
def test_the_noise_is_the_familys(golden, dit):
    io = load_file(golden / "a-dit-io.safetensors")
    t = native_times(io["t"])
    x_t = io["x"].double() * torch.hypot(1 - t, t)[:, None, None, None]
    for labels, expected in ((io["y"], io["out"]), (dit.null_condition(io["y"]), io["out_null"])):
        noise = dit.noise(x_t, t, labels)
        torch.testing.assert_close(noise.float(), expected[:, :4], rtol=0, atol=1e-5)
    assert dit.guidance_channels == 3


@torch.no_grad()
def test_euler_on_the_native_times_is_ddim(golden, registry, dit):
    reference = load_file(golden / "a-dit-sampler.safetensors")
    times = native_times(torch.tensor([round(i * 999 / 99) for i in range(100)])).flip(0)
    z = reference["z"].double() * torch.hypot(1 - times[0], times[0])  # where DDIM starts
    grid = torch.cat([times, torch.zeros(1, dtype=torch.float64)])
    builder = Builder(registry, torch.device("cpu"), 0)
    euler = builder.build("sampler", ComponentChoice(name="euler", options={"state_dtype": "float64"}))
    x = euler.sample(dit, z, grid, reference["y"], Guidance(torch.ones(len(z), dtype=torch.float64))).x
    assert (x - reference["ddim_100"]).norm() < 1e-5 * reference["ddim_100"].norm()


@torch.no_grad()
def test_autocast_does_not_reach_it(make_network, states):
    teacher = NoiseTeacher(make_network(prediction="noise"), SCHEDULE)
    x, labels = states(3), torch.tensor([0, 4, 5])
    t = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    expected = teacher.velocity(x, t, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher.velocity(x, t, labels), expected)
        assert torch.is_autocast_enabled("cpu")
        half = teacher.velocity(x.bfloat16(), t, labels)
    assert half.dtype is torch.bfloat16
    velocity = TransformerTeacher(make_network())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = velocity.velocity(x, t, labels)
    assert not torch.equal(rounded, velocity.velocity(x, t, labels))


@torch.no_grad()
def test_the_schedule_keeps_its_precision_when_the_weights_change_theirs(make_network, states):
    teacher = NoiseTeacher(make_network(prediction="noise", dtype=torch.float64), SCHEDULE)
    question = ask(teacher.convention, states(3), torch.full((3,), 0.3))
    teacher.to(torch.float32)
    again = ask(teacher.convention, states(3), torch.full((3,), 0.3))
    assert torch.equal(question.time, again.time)
    assert teacher.velocity(states(3), torch.ones(3), torch.tensor([0, 4, 5])).dtype is torch.float32


def test_other_schedules_are_options(write_checkpoint, make_context):
    config = DiTTeacherConfig(checkpoint=write_checkpoint("dit"), num_heads=3, diffusion_steps=50, beta_end=0.3)
    teacher = NoiseTeacher.from_config(config, make_context())
    assert teacher.time_range == DiscreteSchedule.linear(50, 1e-4, 0.3).time_range


def test_networks_and_teachers_must_agree_on_what_is_predicted(make_network):
    with pytest.raises(ConfigError, match="predicts a velocity"):
        NoiseTeacher(make_network(), SCHEDULE)
    with pytest.raises(ConfigError, match="predicts the noise"):
        TransformerTeacher(make_network(prediction="noise"))
