"""Consistency in discrete time: the solver's order at the exact map, the grid, the target, and data in place of it."""

import pytest
import torch
from exact_maps import ClassTeacher, ExactGaussianStudent, ExactGuidedStudent, RandomStudent, gaussian_teacher
from freeflow_baselines.config import ConsistencyConfig
from freeflow_baselines.consistency import Consistency, consistency_grid
from freeflow_baselines.shared import TARGET
from objective_helpers import GivenDraws, Spy, build, losses, models, step

from freeflow_core.types import Batch

ROWS = 512


def consistency(**options):
    return build(Consistency, ConsistencyConfig(**options))


def residuals(num_steps, solver, sign=1.0):
    """(N,) distance of neighbours at the exact map, on equal steps in t away from the ends."""
    objective = consistency(num_steps=num_steps, grid="uniform", solver=solver)
    index = (torch.linspace(0.2, 0.7, ROWS, dtype=torch.float64) * num_steps).long()
    teacher = gaussian_teacher(sign=sign)
    x = GivenDraws(ROWS, seed=4).noise("x", (6,))
    draws = GivenDraws(ROWS, {"grid-index": index})
    return losses(objective, ExactGaussianStudent(teacher), teacher, draws, x)["student"].per_sample.detach().sqrt()


@pytest.mark.parametrize(("solver", "order"), [("euler", 2), ("heun", 3)])
def test_error_at_the_exact_map_has_the_solvers_order(solver, order):
    coarse, fine = (residuals(n, solver).square().mean().sqrt() for n in (100, 200))
    assert abs(float(torch.log2(coarse / fine)) - order) < 0.1
    assert fine < (1e-3 if solver == "euler" else 1e-5)


def test_a_wrong_sign_of_the_teacher_shows():
    right, wrong = residuals(100, "heun"), residuals(100, "heun", sign=-1)
    assert wrong.mean() > 1e3 * right.mean()
    assert wrong.mean() * 100 > 0.1  # per unit of time


def test_the_last_interval_is_the_teachers_own_step_to_the_data():
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


def test_guided_solver():
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


def test_from_data_the_neighbour_joins_the_same_noise():
    student, target = RandomStudent(), Spy(RandomStudent(seed=1))
    draws, x = GivenDraws(ROWS), GivenDraws(ROWS, seed=4).noise("x", (3,))
    objective = consistency(velocity="data", num_steps=8)
    step(objective, models(student, **{TARGET: target}), draws, Batch(x, None))
    ((x_r, r, s, _, _),) = target.calls
    grid = consistency_grid(ConsistencyConfig(num_steps=8))
    index = draws.integers("grid-index", 8)
    assert torch.equal(r, grid[index + 1])
    assert (s == 0).all()
    torch.testing.assert_close(x_r, (1 - r)[:, None] * x + r[:, None] * draws.noise("noise", (3,)))


def test_roles_and_gradients():
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


def test_karras_grid_in_our_times():
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


def test_distances():
    teacher, student = gaussian_teacher(3), RandomStudent()
    x = GivenDraws(ROWS, seed=4).noise("x", (3,))
    square = losses(consistency(), student, teacher, GivenDraws(ROWS), x)["student"].per_sample
    huber = losses(consistency(distance="huber"), student, teacher, GivenDraws(ROWS), x)["student"].per_sample
    c = 0.00054 * 3**0.5
    torch.testing.assert_close(huber, (3 * square + c**2).sqrt() - c)
