"""What a step costs: rows counted on real steps, the period of update ratios, and what a budget buys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_helpers import TINY
from torch import nn

from freeflow_core.config import load_run_config
from freeflow_core.config.compare import Budget
from freeflow_core.errors import ConfigError
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.compare.cost import Cost, images_for, measure_cost, repeating, with_length
from freeflow_core.tools.cost.step import Rows, counted_rows

SMALL = TINY | {"objective": {"name": "freeflow-prediction"}, "training": {"images": 1000, "batch_size": 16}}


def tiny(registry, *assignments, **overrides):
    return load_run_config(registry, "distill", overrides={**SMALL, **overrides}, assignments=assignments)


def test_rows_are_counted_by_what_is_done_with_them():
    network = nn.Linear(3, 3)
    x = torch.randn(5, 3)
    with counted_rows({"net": network}, None) as count:
        network(x)
        with torch.no_grad():
            network(x[:2])
            network(input=x[:1])
            torch.func.jvp(lambda t: network(x[:4] * t), (torch.ones(()),), (torch.ones(()),))
    assert count == {"net": Rows(plain=3, gradient=5, derivative=4)}
    assert count["net"].forwards == 3 + 3 * 5 + 2 * 4
    network(x)
    assert count["net"].gradient == 5, "the hooks are gone"


def test_the_teacher_is_counted_through_its_velocity_alone_and_left_as_it_was(registry):
    from freeflow_core.engine.build import Builder

    ring = {"name": "gaussian-mixture", "layout": "ring", "num_classes": 8}
    guided = {"name": "autoguidance", "main": ring, "guide": {**ring, "std": 0.4}}
    x, t, weight = torch.randn(6, 2), torch.full((6,), 0.5), torch.tensor([1.0, 1, 1, 1, 2, 2])
    for choice in (ring, guided):
        config = tiny(registry, teacher=choice)
        teacher = Builder(registry, torch.device("cpu"), 0).teacher(config.teacher)
        with counted_rows({}, teacher) as count, torch.no_grad():
            teacher.guided_velocity(x, t, teacher.balanced_condition(torch.arange(6)), weight)
        assert count == {"teacher": Rows(plain=8)}, "unconditional passes, and those of a guide, are passes"
        assert not any("velocity" in vars(part) for part in teacher.modules())


@given(st.integers(1, 6), st.integers(0, 7), st.data())
def test_a_period_is_found_as_soon_as_it_was_seen_three_times(period, lead, data):
    pattern = data.draw(st.lists(st.integers(0, 3), min_size=period, max_size=period))
    steps = [9 + i for i in range(lead)] + pattern * 3
    found = repeating(steps, [frozenset()] * len(steps), frozenset())
    assert found is not None
    assert found <= period
    assert steps[-found:] == steps[-2 * found : -found] == steps[-3 * found : -2 * found]


@pytest.mark.parametrize("steps", [[], [1, 1], list(range(50)), [0, 0, 1, 0, 0, 1]])
def test_no_period_is_made_up(steps):
    assert repeating(steps, [frozenset()] * len(steps), frozenset()) is None


@pytest.mark.parametrize("critic_updates", [1, 2, 3, 5, 6])
def test_many_steps_of_the_critic_in_a_row_are_no_period(critic_updates):
    """The end looks alike three times long before the student has had its turn."""
    cycle = ["critic"] * (critic_updates - 1) + ["both"]
    steps = (cycle * 4)[:-1]
    updated = [frozenset({"critic", "student"} if step == "both" else {"critic"}) for step in steps]
    trained = frozenset({"critic", "student"})
    found = [repeating(steps[:n], updated[:n], trained) for n in range(1, len(steps) + 1)]
    assert next(period for period in found if period is not None) == critic_updates
    assert all(period is None for period in found[: 3 * critic_updates - 1])


@pytest.mark.parametrize(
    ("objective", "source", "forwards"),
    [
        ({"name": "freeflow-prediction", "derivative": "central"}, "prior", 2 + 3 + 1),  # 2 passes, a gradient; teacher
        ({"name": "freeflow-prediction", "derivative": "forward-mode"}, "prior", 2 + 3 + 1),  # a derivative costs 2
        ({"name": "flow-matching"}, "gaussian-mixture", 3),
    ],
)
def test_the_cost_of_known_objectives(registry, objective, source, forwards):
    config = tiny(registry, objective=objective, source=source, codec="states")
    cost = measure_cost(config, registry)
    assert cost.forwards_per_image == forwards
    assert sum(rows.forwards for rows in cost.rows.values()) == forwards
    student = 1000  # bytes of a network of this size, several times over: weights, gradients, moments, average
    assert student < cost.peak_memory < 50_000_000


def test_networks_that_take_turns_are_averaged_over_whole_cycles(registry):
    cost = measure_cost(tiny(registry, objective={"name": "score-distillation", "critic_updates": 3}), registry)
    third = pytest.approx(1 / 3)
    assert cost.rows["fake_velocity"] == Rows(gradient=1)
    assert cost.rows["student"] == Rows(plain=pytest.approx(2 / 3), gradient=third)
    assert cost.rows["teacher"] == Rows(plain=third)
    assert cost.forwards_per_image == pytest.approx(3 + 1 + 2 / 3 + 1 / 3)
    parts = {"objective": "lagrangian", "source": "gaussian-mixture", "student": {"name": "mlp", "width": 256}}
    weighted = measure_cost(tiny(registry, codec="states", **parts), registry)
    assert set(weighted.rows) == {"student", "teacher"}, "a weighting of two numbers is no network pass"


def test_measuring_draws_nothing_that_training_would_miss(registry, tmp_path):
    """A run after a measurement is the run without it."""
    from freeflow_core import api
    from freeflow_core.network_file import load_tensors

    config = tiny(registry, "training.images=64", "evaluation.enabled=false")
    before = api.distill(config, output=tmp_path / "before", manager=registry.manager)
    measure_cost(config, registry)
    after = api.distill(config, output=tmp_path / "after", manager=registry.manager)
    first, second = (load_tensors(run.folder / "student.safetensors")[0] for run in (before, after))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_a_budget_buys(registry):
    config, cost = tiny(registry), Cost(6.0, {}, 0)

    def bought(budget):
        return images_for(None if budget is None else Budget.model_validate(budget), config, cost)

    assert bought(None) == 1000
    assert bought("images=777") == 777
    assert bought("forwards=1000") == 1000 // 6 // 16 * 16 == 160
    with pytest.raises(ConfigError, match="does not buy one step"):
        bought("forwards=95")


@given(st.integers(1, 10**6))
def test_schedules_keep_their_share_of_the_run(images):
    registry = Registry(Manager.load())
    config = tiny(
        registry,
        "training.optimizer.warmup_images=100",
        "training.optimizer.decay_images=500",
        "training.ema.halflife_images=50",
        "evaluation.every_images=250",
        objective={"name": "freeflow", "correction_warmup_images": 200},
    )
    run = with_length(config, images)
    assert run.training.images == images
    assert abs(run.training.optimizer.warmup_images - 0.1 * images) <= 1  # whole images, at least one
    assert abs(run.training.optimizer.decay_images - 0.5 * images) <= 1  # whole images, at least one
    assert abs(run.training.ema.halflife_images - 0.05 * images) <= 1  # whole images, at least one
    assert abs(run.evaluation.every_images - 0.25 * images) <= 1
    assert abs(run.objective.options.correction_warmup_images - 0.2 * images) <= 1
    assert run.training.batch_size == config.training.batch_size
    unset = with_length(tiny(registry), images)
    assert (unset.training.optimizer.warmup_images, unset.training.optimizer.decay_images) == (0, None)
