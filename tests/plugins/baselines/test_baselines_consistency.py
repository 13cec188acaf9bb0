"""Consistency in discrete time: the solver's order at the exact map, the grid, the target, and data in place of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from freeflow_baselines.config import ConsistencyConfig
from freeflow_baselines.consistency import TARGET, Consistency, consistency_grid
from objective_helpers import (
    ClassTeacher,
    ExactGaussianStudent,
    ExactGuidedStudent,
    GivenDraws,
    LocalContext,
    RandomStudent,
    Spy,
    build,
    gaussian_teacher,
    losses,
    progress,
)
from pydantic import ValidationError

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import AverageVelocityStudent, Model, Models, StartTimes
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Batch

ROWS = 512


def consistency(**options: Any) -> Consistency:
    return build(Consistency, ConsistencyConfig(**options))


def residuals(num_steps: int, solver: str, sign: float = 1.0) -> torch.Tensor:
    """(N,) distance of neighbours at the exact map, on equal steps in t away from the ends."""
    objective = consistency(num_steps=num_steps, grid="uniform", solver=solver)
    index = (torch.linspace(0.2, 0.7, ROWS, dtype=torch.float64) * num_steps).long()
    teacher = gaussian_teacher(sign=sign)
    x = GivenDraws(ROWS, seed=4).noise("x", (6,))
    draws = GivenDraws(ROWS, {"grid-index": index})
    return losses(objective, ExactGaussianStudent(teacher), teacher, draws, x)["student"].per_sample.detach().sqrt()


def test_contract() -> None:
    objective = consistency()
    assert objective.needs_data
    assert objective.needs_teacher
    assert not consistency(velocity="data").needs_teacher
    assert objective.requires is AverageVelocityStudent
    assert objective.start_times is StartTimes.ANY_TO_DATA
    assert not objective.uses_batch_means


@pytest.mark.parametrize(("solver", "order"), [("euler", 2), ("heun", 3)])
def test_error_at_the_exact_map_has_the_solvers_order(solver: str, order: int) -> None:
    coarse, fine = (residuals(n, solver).square().mean().sqrt() for n in (100, 200))
    assert abs(float(torch.log2(coarse / fine)) - order) < 0.1
    assert fine < (1e-3 if solver == "euler" else 1e-5)


def test_a_wrong_sign_of_the_teacher_shows() -> None:
    right, wrong = residuals(100, "heun"), residuals(100, "heun", sign=-1)
    assert wrong.mean() > 1e3 * right.mean()
    assert wrong.mean() * 100 > 0.1  # per unit of time


def test_the_last_interval_is_the_teachers_own_step_to_the_data() -> None:
    # f(x_0, 0) = x_0 for any network: the boundary condition.
    teacher, student = gaussian_teacher(), RandomStudent(6)
    objective = consistency(num_steps=4, solver="euler")
    draws = GivenDraws(ROWS, {"grid-index": torch.full((ROWS,), 3)})
    x = GivenDraws(ROWS, seed=4).noise("x", (6,))
    per_sample = losses(objective, student, teacher, draws, x)["student"].per_sample
    t = consistency_grid(ConsistencyConfig(num_steps=4))[3].expand(ROWS)
    x_t = (1 - t)[:, None] * x + t[:, None] * draws.noise("noise", (6,))
    u = student(x_t, t, 0 * t, None, torch.ones_like(t))
    torch.testing.assert_close(per_sample, (t[:, None] * (u - teacher.velocity(x_t, t, None))).square().mean(1))


def test_guided_solver() -> None:
    teacher = ClassTeacher()
    x, labels = teacher.data(ROWS)
    index = torch.arange(ROWS) % 400
    found = {}
    for interval in ((0.0, 1.0), (0.0, 0.2)):
        objective = consistency(
            num_steps=400, grid="uniform", guidance_min=2.5, guidance_max=2.5, guidance_interval=interval
        )
        draws = GivenDraws(ROWS, {"grid-index": index})
        loss = losses(objective, ExactGuidedStudent(teacher), teacher, draws, x, labels)
        found[interval] = loss["student"].per_sample.detach().sqrt().max()
    assert found[0.0, 1.0] < 1e-5
    assert found[0.0, 0.2] > 1e-3


def test_from_data_the_neighbour_joins_the_same_noise() -> None:
    student, target = RandomStudent(), Spy(RandomStudent(seed=1))
    objective = consistency(velocity="data", num_steps=8)
    networks = Models({"student": Model(student, student), TARGET: Model(target, target)}, None)
    draws, x = GivenDraws(ROWS), GivenDraws(ROWS, seed=4).noise("x", (3,))
    objective.losses(networks, Batch(x, None), draws, progress(), LocalContext())
    ((x_r, r, s, _, _),) = target.calls
    grid = consistency_grid(ConsistencyConfig(num_steps=8))
    index = draws.integers("grid-index", 8)
    assert torch.equal(r, grid[index + 1])
    assert (s == 0).all()
    torch.testing.assert_close(x_r, (1 - r)[:, None] * x + r[:, None] * draws.noise("noise", (3,)))


def test_roles_and_gradients() -> None:
    student = RandomStudent()
    roles = consistency(target_halflife_images=1234).roles(student, None)
    assert roles.keys() == {TARGET}
    role = roles[TARGET]
    assert not role.trainable
    assert not role.ema
    assert role.follows == "student"
    assert role.follow_halflife_images == 1234
    assert role.network is not student
    assert consistency(target_halflife_images=None).roles(student, None) == {}
    assert 0.5 ** (2048 / ConsistencyConfig().target_halflife_images) == pytest.approx(0.95, abs=1e-4)

    teacher, spy, target = gaussian_teacher(3), Spy(student), Spy(RandomStudent(seed=1))
    networks = Models({"student": Model(spy, student), TARGET: Model(target, target)}, teacher)
    x = GivenDraws(8, seed=4).noise("x", (3,))
    found = consistency().losses(networks, Batch(x, None), GivenDraws(8), progress(), LocalContext())
    found["student"].per_sample.mean().backward()
    assert spy.gradient == [True]
    assert target.gradient == [False]
    assert all(p.grad is not None for name, p in student.named_parameters() if name != "label")
    assert all(p.grad is None for p in target.parameters())
    assert found.keys() == {"student"}


def test_without_a_target_network_the_student_is_its_own() -> None:
    teacher, student = gaussian_teacher(3), RandomStudent()
    x = GivenDraws(8, seed=4).noise("x", (3,))
    own = losses(consistency(target_halflife_images=None), student, teacher, GivenDraws(8), x)["student"]
    copied = losses(consistency(), student, teacher, GivenDraws(8), x)["student"]
    torch.testing.assert_close(own.per_sample, copied.per_sample)


def test_karras_grid_in_our_times() -> None:
    config = ConsistencyConfig()
    grid = consistency_grid(config)
    assert len(grid) == config.num_steps + 1
    assert grid[0] == 1
    assert grid[-1] == 0
    assert (grid.diff() < 0).all()
    sigma = grid[1:-1] / (1 - grid[1:-1])
    steps = (sigma ** (1 / 7)).diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    middle = 80 ** (1 / 7) + 0.5 * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    assert float(sigma[19]) == pytest.approx(middle**7)
    torch.testing.assert_close(
        consistency_grid(ConsistencyConfig(grid="uniform", num_steps=4)),
        torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64),
    )


def test_every_interval_is_drawn_alike() -> None:
    index = PhiloxDraws(0, torch.arange(8000)).integers("grid-index", 40)
    counts = torch.bincount(index, minlength=40)
    assert counts.min() > 130
    assert counts.max() < 270


def test_distances() -> None:
    teacher, student = gaussian_teacher(3), RandomStudent()
    x = GivenDraws(ROWS, seed=4).noise("x", (3,))
    square = losses(consistency(), student, teacher, GivenDraws(ROWS), x)["student"].per_sample
    huber = losses(consistency(distance="huber"), student, teacher, GivenDraws(ROWS), x)["student"].per_sample
    c = 0.00054 * 3**0.5
    torch.testing.assert_close(huber, (3 * square + c**2).sqrt() - c)


def test_a_batch_is_the_sum_of_its_parts() -> None:
    teacher, student = gaussian_teacher(3), RandomStudent()
    x = GivenDraws(16, seed=4).noise("x", (3,))
    whole = PhiloxDraws(7, torch.arange(16), dtype=torch.float64)
    full = losses(consistency(), student, teacher, whole, x)["student"].per_sample
    for rows in torch.arange(16).split(4):
        part = losses(consistency(), student, teacher, whole.rows(rows), x[rows])["student"].per_sample
        torch.testing.assert_close(part, full[rows], rtol=1e-12, atol=1e-14)


def test_a_source_without_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="source"):
        losses(consistency(), RandomStudent(), gaussian_teacher(3), GivenDraws(4))


@pytest.mark.parametrize(
    "options",
    [
        {"sigma_min": 90.0},
        {"num_steps": 1},
        {"velocity": "data", "guidance_max": 2.0},
        {"guidance_min": 2.0},
        {"distance": "lpips"},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ConsistencyConfig(**options)
