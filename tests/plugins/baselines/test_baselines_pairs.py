"""Regression on pairs of a Gaussian teacher, whose trajectories are known, made online or kept in a file."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from baselines_generative_helpers import MEAN, STD, Spy, TeacherSpy, build, losses, philox, spied, teacher_and_student
from freeflow_baselines.config_generative import PairsConfig, TrajectoryOptions
from freeflow_baselines.pair_cache import PairCache, write_pairs
from freeflow_baselines.pairs import PairRegression
from freeflow_baselines.teacher_path import end_point
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher
from freeflow_toy.policy_student import MLPPolicyStudent
from pydantic import ValidationError
from torch import Tensor, nn

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import AverageVelocityStudent, BuildContext, StartTimes, Student, Teacher
from freeflow_core.math.flow import average_velocity_jump, expand_times, mean_square
from freeflow_core.network_file import save_tensors
from freeflow_core.testing.exact import GaussianStudent, GaussianTeacher
from freeflow_core.types import Condition, LoadReport, NetworkState


def objective(**options: Any) -> PairRegression:
    return build(PairRegression, PairsConfig, **options)


def exact_cache(num: int, sign: float = 1.0) -> PairCache:
    """Pairs of the Gaussian teacher in float64: x = mean + std z."""
    z = philox(num, seed=8).noise("pairs", (3,))
    return PairCache(z, MEAN + sign * STD * z, None, torch.ones(num, dtype=torch.float64), {})


class StraightStudent(AverageVelocityStudent):
    """The rectified flow of x = mean + std z: straight lines, with the velocity z - x of the z that leads to x_t."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.std = nn.Parameter(MEAN.clone()), nn.Parameter(STD.clone())
        self.sample_shape = tuple(MEAN.shape)

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        time = expand_times(t, x_t)
        z = (x_t - (1 - time) * self.mean) / ((1 - time) * self.std + time)
        return z - (self.mean + self.std * z)

    def average_velocity(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return output

    def jump(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return average_velocity_jump(x_t, output, t, s)

    def load_teacher(self, teacher: Teacher) -> LoadReport:
        raise NotImplementedError

    def network_state(self) -> NetworkState:
        raise NotImplementedError

    @classmethod
    def from_state(cls, state: NetworkState) -> Self:
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("mode", "student"), [("endpoint", GaussianStudent(MEAN, STD)), ("rectified-flow", StraightStudent())]
)
def test_the_exact_map_is_stationary_on_exact_pairs_and_a_wrong_sign_is_not(mode: Any, student: Any) -> None:
    models, _, _ = spied(None, student)
    for sign in (1.0, -1.0):
        pairs = PairRegression(PairsConfig(mode=mode), exact_cache(500, sign))
        loss = losses(pairs, models, philox(1000))["student"]
        student.zero_grad()
        loss.per_sample.mean().backward()
        gradient = max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None)
        if sign == 1:
            assert loss.per_sample.max() < 1e-24
            assert gradient < 1e-12
        else:
            assert loss.per_sample.mean() > 0.1
            assert gradient > 0.1


@pytest.mark.parametrize(("solver", "ratio", "finest"), [("euler", 2.0, 0.03), ("heun", 4.0, 1e-3)])
def test_the_teachers_path_is_followed_with_the_solvers_order(solver: Any, ratio: float, finest: float) -> None:
    teacher = GaussianTeacher(MEAN, STD)
    z, one = philox(500).noise("prior", (3,)), torch.ones(500, dtype=torch.float64)
    exact = teacher.exact_flow_map(z, one, 0 * one)
    errors = [
        (end_point(teacher, z, None, one, TrajectoryOptions(solver=solver, solver_steps=n)) - exact).norm()
        / exact.norm()
        for n in (16, 32, 64)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert 0.8 * ratio < coarse / fine < 1.25 * ratio
    assert errors[-1] < finest


def test_online_pairs_are_noise_and_where_the_teacher_takes_it() -> None:
    teacher, student = teacher_and_student(std=1.2 * STD)
    spy = TeacherSpy(teacher)
    models, wrapped, bare = spied(spy, student)
    loss = losses(objective(solver_steps=8), models, philox(16))["student"]
    z, t, s, condition, _ = wrapped.calls[0]
    assert torch.equal(z, philox(16).noise("prior", (3,)))
    assert torch.equal(t, torch.ones_like(t))
    assert torch.equal(s, torch.zeros_like(s))
    assert condition is None
    one = torch.ones(16, dtype=torch.float64)
    x = end_point(teacher, z, None, one, TrajectoryOptions(solver_steps=8))
    torch.testing.assert_close(loss.per_sample, mean_square(student.flow_map(z, t, s, None, None) - x))
    assert len(spy.calls) == 16  # Heun asks twice a step
    assert (wrapped.gradient, bare.gradient) == ([True], [])


def test_lines_between_the_pairs_are_asked_everywhere_for_jumps_of_every_length() -> None:
    models, wrapped, _ = spied(None, StraightStudent())
    pairs = PairRegression(PairsConfig(mode="rectified-flow"), cache := exact_cache(50))
    losses(pairs, models, philox(4000))
    x_t, t, s, _, _ = wrapped.calls[0]
    rows = philox(4000).integers("pair", 50)
    expected = (1 - t[:, None]) * cache.data[rows] + t[:, None] * cache.noise[rows]
    torch.testing.assert_close(x_t, expected)
    assert abs(float(t.mean()) - 0.5) < 0.02
    assert abs(float((s / t).mean()) - 0.5) < 0.02
    assert (s < t).all()


def test_guidance_is_decided_at_each_steps_start() -> None:
    spy = TeacherSpy(GaussianTeacher(MEAN, STD), num_classes=2)
    models, wrapped, _ = spied(spy, GaussianStudent(MEAN, STD))
    options = {"guidance_min": 2.0, "guidance_max": 4.0, "guidance_interval": (0.3, 0.7), "solver_steps": 4}
    losses(objective(**options), models, philox(5))
    guidance = wrapped.calls[0][4]
    for number, (_, times, _, weight) in enumerate(spy.calls):
        start = 1 - number // 2 / 4
        assert times[0] == pytest.approx(start - 0.25 * (number % 2))
        torch.testing.assert_close(weight, guidance if 0.3 <= start <= 0.7 else torch.ones_like(guidance))


def mixture() -> GaussianMixtureTeacher:
    means = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0]])
    return GaussianMixtureTeacher(means, stds=torch.full((3,), 0.3), labels=torch.tensor([0, 1, 2]))


def test_a_file_of_pairs_holds_what_would_be_made_online(tmp_path: Path) -> None:
    options = TrajectoryOptions(solver_steps=4, guidance_min=1.0, guidance_max=3.0)
    told: list[int] = []
    write_pairs(tmp_path / "a.safetensors", mixture(), 25, options, seed=5, batch_size=10, on_batch=told.append)
    write_pairs(tmp_path / "b.safetensors", mixture(), 25, options, seed=5, batch_size=25)
    assert told == [10, 20, 25]
    cache, same = PairCache.read(tmp_path / "a.safetensors"), PairCache.read(tmp_path / "b.safetensors")
    for name in ("noise", "data", "labels", "guidance"):
        torch.testing.assert_close(getattr(cache, name), getattr(same, name))
    draws = philox(25, seed=5, dtype=torch.float32)
    labels = mixture().sample_condition(draws)
    assert isinstance(labels, Tensor)
    assert cache.labels is not None
    assert torch.equal(cache.labels, labels)
    expected = end_point(mixture(), draws.noise("prior", (2,)), labels, cache.guidance, options)
    torch.testing.assert_close(cache.data, expected)
    assert (cache.guidance >= 1).all()
    assert (cache.guidance <= 3).all()
    assert cache.description["solver_steps"] == 4


def test_training_on_a_file_needs_no_teacher_and_depends_on_the_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "pairs.safetensors"
    write_pairs(path, mixture(), 20, TrajectoryOptions(solver_steps=2, guidance_max=2.0))
    pairs = objective(cache=path)
    assert not pairs.needs_teacher
    assert objective().needs_teacher
    torch.manual_seed(0)
    student = MLPPolicyStudent((2,), 3, width=8, depth=1, num_components=2, num_substeps=4)
    assert pairs.roles(student, None) == {}
    models, wrapped, _ = spied(None, student)
    whole = losses(pairs, models, philox(12, dtype=torch.float32))["student"].per_sample
    parts = [
        losses(pairs, models, philox(b - a, a, dtype=torch.float32))["student"].per_sample for a, b in ((0, 5), (5, 12))
    ]
    torch.testing.assert_close(whole, torch.cat(parts))
    cache, rows = PairCache.read(path), philox(12).integers("pair", 20)
    z, _, _, labels, guidance = wrapped.calls[0]
    assert cache.labels is not None
    assert torch.equal(z, cache.noise[rows])
    assert torch.equal(labels, cache.labels[rows])
    torch.testing.assert_close(guidance, cache.guidance[rows].float())
    whole.mean().backward()
    assert all(p.grad is not None for p in student.parameters())  # through the rolled policy


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.safetensors"
    with pytest.raises(CheckpointError, match="no checkpoint file"):
        objective(cache=path)
    save_tensors(path, {"noise": torch.zeros(1)}, {"kind": "network"})
    with pytest.raises(CheckpointError, match="holds no pairs"):
        objective(cache=path)
    write_pairs(path, mixture(), 4, TrajectoryOptions(solver_steps=1))
    with pytest.raises(ConfigError, match=r"\(2,\) of 3 classes, the student works on \(3,\) of no classes"):
        objective(cache=path).roles(GaussianStudent(MEAN, STD), None)


def test_what_the_file_decides_cannot_be_asked_for_beside_it(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="guidance_max, solver_steps"):
        PairsConfig(cache=tmp_path / "p", guidance_max=2.0, solver_steps=8)
    assert PairsConfig(cache=tmp_path / "p", solver="heun").cache == tmp_path / "p"


def test_contract() -> None:
    end, straight = objective(), objective(mode="rectified-flow")
    assert (end.requires, straight.requires) == (Student, AverageVelocityStudent)
    assert (end.start_times, straight.start_times) == (StartTimes.PRIOR, StartTimes.ANY)
    assert not end.needs_data
    teacher, student = teacher_and_student()
    models, _, _ = spied(teacher, student)
    for pairs in (objective(solver_steps=1), objective(mode="rectified-flow", solver_steps=1)):
        loss = losses(pairs, models, philox(4))["student"]
        assert all(term.ndim == 0 and not term.requires_grad for term in loss.terms.values())


def test_losses_are_float32_under_bf16_autocast() -> None:
    torch.manual_seed(0)
    student = MLPPolicyStudent((3,), None, width=8, depth=1, num_components=2, num_substeps=4)
    models, _, _ = spied(GaussianTeacher(MEAN.float(), STD.float()), student)
    assert isinstance(models["student"].wrapped, Spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses(objective(solver_steps=2), models, philox(4, dtype=torch.float32))["student"]
    assert loss.per_sample.dtype is torch.float32


@pytest.mark.parametrize("options", [{"mode": "both"}, {"solver": "rk4"}, {"solver_steps": 0}, {"guidance_min": 2.0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PairsConfig(**options)
