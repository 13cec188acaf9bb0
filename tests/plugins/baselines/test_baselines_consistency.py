"""Consistency in discrete time: the solver's order at the exact map, the grid, the target, and data in place of it."""

import pytest
import torch
from exact_maps import ClassTeacher, ExactGaussianStudent, ExactGuidedStudent, RandomStudent, gaussian_teacher
from freeflow_baselines.config import ConsistencyConfig
from freeflow_baselines.consistency import Consistency, consistency_grid, mapped, neighbours, steps_at
from freeflow_baselines.shared import TARGET
from objective_helpers import GivenDraws, Spy, build, losses, models, progress, step

from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Batch

ROWS = 512
CM = {"recipe": "cm"}


def consistency(**options):
    return build(Consistency, ConsistencyConfig(**{**CM, **options}))


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
    t = consistency_grid(ConsistencyConfig(), 4)[3].expand(ROWS)
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
    grid = consistency_grid(ConsistencyConfig(), 8)
    index = draws.integers("grid-index", 8)
    assert torch.equal(r, grid[index + 1])
    assert (s == 0).all()
    torch.testing.assert_close(x_r, (1 - r)[:, None] * x + r[:, None] * draws.noise("noise", (3,)))


def test_roles_and_gradients():
    student = RandomStudent()
    roles = consistency(target_halflife_images=1234).roles(student, None)
    assert roles.keys() == {TARGET}
    role = roles[TARGET]
    assert (role.trainable, role.ema, role.follows, role.follow_halflife_images) == (False, False, "student", 1234)
    assert role.network is not student
    assert consistency(target_halflife_images=None).roles(student, None) == {}
    assert ConsistencyConfig().target_halflife_images is None
    assert 0.5 ** (2048 / ConsistencyConfig(**CM).target_halflife_images) == pytest.approx(0.95, abs=1e-4)


def test_karras_grid_in_our_times():
    grid = consistency_grid(ConsistencyConfig(), 40)
    assert len(grid) == 41
    assert grid[0] == 1
    assert grid[-1] == 0
    assert (grid.diff() < 0).all()
    sigma = grid[1:-1] / (1 - grid[1:-1])
    steps = (sigma ** (1 / 7)).diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    middle = 80 ** (1 / 7) + 0.5 * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    assert float(sigma[19]) == pytest.approx(middle**7)
    torch.testing.assert_close(
        consistency_grid(ConsistencyConfig(grid="uniform"), 4),
        torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64),
    )


def test_distances_and_weights():
    teacher, student = gaussian_teacher(3), RandomStudent()
    x, draws = GivenDraws(ROWS, seed=4).noise("x", (3,)), GivenDraws(ROWS)

    def found(**options):
        return losses(consistency(**options), student, teacher, draws, x)["student"].per_sample

    c = 0.00054 * 3**0.5
    torch.testing.assert_close(found(distance="huber"), (3 * found() + c**2).sqrt() - c)
    t, r = neighbours(draws, 0.5, ConsistencyConfig(**CM))
    torch.testing.assert_close(found(weighting="interval") * (t - r), found())


def test_recipes_fill_what_is_not_given():
    improved, easy = ConsistencyConfig(recipe="ict"), ConsistencyConfig(recipe="ect", num_steps=7)
    assert (improved.neighbour, improved.times, improved.weighting) == ("grid", "lognormal", "interval")
    assert (improved.start_steps, improved.num_steps, improved.distance) == (10, 1280, "squared")
    assert ConsistencyConfig(velocity="data").distance == "huber"
    assert (easy.neighbour, easy.num_steps, easy.target_halflife_images) == ("mapping", 7, None)
    again = ConsistencyConfig(**ConsistencyConfig(recipe="cm", num_steps=18).model_dump())
    assert ConsistencyConfig(recipe="cm", velocity="data").distance == "squared"
    assert (again.num_steps, again.distance, again.start_steps) == (18, "squared", None)


def test_the_number_of_steps_doubles_in_equal_parts_of_the_run():
    config = ConsistencyConfig(recipe="ict")
    found = [steps_at((part + 0.5) / 8, config) for part in range(8)]
    assert found == [10, 20, 40, 80, 160, 320, 640, 1280]
    assert steps_at(1.0, config) == 1280
    assert steps_at(0.0, ConsistencyConfig(recipe="ict", num_steps=8)) == 8


def test_lognormal_intervals_are_as_frequent_as_a_normal_log_sigma_falls_into_them():
    config = ConsistencyConfig(recipe="ict", start_steps=None, num_steps=10)
    t, r = neighbours(PhiloxDraws(0, torch.arange(40_000)), 0.0, config)
    grid = consistency_grid(config, 10)
    shares = torch.bincount(torch.searchsorted(-grid, -t), minlength=10) / 40_000
    ends = torch.special.ndtr((torch.logit(grid) + 1.1) / 2.0)  # 1 and 0 at the ends
    torch.testing.assert_close(shares.double(), ends[:-1] - ends[1:], atol=0.01, rtol=0)
    assert torch.equal(grid[torch.searchsorted(-grid, -t) + 1], r)


def test_the_mapping_is_that_of_easy_consistency_tuning():
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    sigma = t / (1 - t)
    config = ConsistencyConfig(recipe="ect")
    for stage in (1, 4, 8):
        expected = (sigma * (1 - (1 + 8 / (1 + sigma.exp())) / 2**stage)).clamp(min=0)
        r = mapped(t, stage, config)
        torch.testing.assert_close(r / (1 - r), expected)
    draws = PhiloxDraws(0, torch.arange(100))
    for fraction, stage in ((0.0, 1), (0.49, 4), (1.0, 8)):
        t, r = neighbours(draws, fraction, config)
        torch.testing.assert_close(r, mapped(t, stage, config))
        assert (r < t).all()


@pytest.mark.parametrize("recipe", ["ict", "ect"])
def test_the_exact_map_is_the_better_kept_the_later_in_the_run(recipe):
    teacher = gaussian_teacher()
    x = GivenDraws(ROWS, seed=4).noise("x", (6,))

    def residual(images, teacher):
        made = consistency(recipe=recipe, distance="squared", weighting="none")
        student = ExactGaussianStudent(gaussian_teacher())
        found = losses(made, student, teacher, GivenDraws(ROWS), x, at=progress(images))["student"].per_sample
        return float(found.detach().mean().sqrt())

    assert residual(999, teacher) < 1e-3 * residual(0, teacher)
    assert residual(999, gaussian_teacher(sign=-1)) > 100 * residual(999, teacher)
