"""A run that does not fit: settings with which it does, and hours by a rate that was given or measured."""

import dataclasses

import pytest
from objective_helpers import with_normalised
from run_helpers import TINY_SIT

from freeflow_core import api
from freeflow_core.engine import optimizer
from freeflow_core.tools.cost.plan import USABLE

GIB = 2**30
ROWS = ("training.batch_size=32",)


def resolved(manager, *settings, **overrides):
    overrides = {
        "teacher": TINY_SIT,
        "reference": None,
        "evaluation": {"enabled": False, "evaluators": []},
        "trackers": [],
        **overrides,
    }
    return api.resolve_config(
        "distill", preset="digits", overrides=overrides, settings=(*ROWS, *settings), manager=manager
    )


def proposed(manager, config, share, **arguments):
    """For a device with room for the fixed part and ``share`` of the activations."""
    whole = api.plan(config, manager=manager, device_memory=1000, **arguments)
    memory = (whole.total - (1 - share) * whole.activations) / USABLE / GIB
    plan = api.plan(config, manager=manager, device_memory=memory, **arguments)
    assert not plan.fits
    return plan, api.propose(config, plan, manager=manager)


def settled(config, manager, settings):
    values = dict(setting.split("=") for setting in settings)
    training = config.training.model_copy(update={"accumulation": int(values.get("training.accumulation", 1))})
    recomputed = values.get("runtime.activation_checkpointing") == "true"
    runtime = config.runtime.model_copy(update={"activation_checkpointing": recomputed})
    return config.model_copy(update={"training": training, "runtime": runtime})


def test_what_is_proposed_fits_and_says_what_it_costs(manager):
    config = resolved(manager)
    plan, found = proposed(manager, config, 0.1, rate=1.0)
    assert found.plan.total <= plan.available
    again = api.plan(
        settled(config, manager, found.settings), manager=manager, device_memory=plan.device_memory / GIB, rate=1.0
    )
    assert again == dataclasses.replace(found.plan, free=again.free)
    assert found.plan.hours > plan.hours


def test_what_passes_rows_twice_is_tried_last(manager):
    """A mean over the batch costs a second pass with micro-batches, of FreeFlow's correction rows alone."""
    both = with_normalised()
    _, twice = proposed(both, resolved(both, objective={"name": "normalised"}), 0.8)
    assert twice.settings == ("runtime.activation_checkpointing=true",)
    plan, in_parts = proposed(manager, resolved(manager, "objective.adaptive=true"), 0.8)
    assert in_parts.settings == ("training.accumulation=2",)
    assert 1.02 < in_parts.plan.flops_per_step / plan.flops_per_step < 1.08
    plan, once = proposed(manager, resolved(manager, objective={"name": "freeflow-prediction"}), 0.8)
    assert once.settings == ("training.accumulation=2",)
    assert once.plan.flops_per_step == pytest.approx(plan.flops_per_step, rel=1e-6)


def test_where_nothing_helps_nothing_is_proposed(manager):
    config = resolved(manager, "training.batch_size=4")
    plan = api.plan(config, manager=manager, device_memory=1e-4)
    assert not plan.fits
    assert api.propose(config, plan, manager=manager) is None


def test_a_named_device_is_a_gpu_unless_another_is_asked_for(manager):
    assert api.plan(resolved(manager), manager=manager, device_memory=24).device == "cuda"
    here = api.plan(resolved(manager, "runtime.device=cpu"), manager=manager, device_memory=24)
    assert (here.device, here.available) == ("cpu", int(USABLE * 24 * GIB))


def test_hours_are_the_work_over_the_rate(manager):
    config = resolved(manager)
    two = api.plan(config, manager=manager, num_processes=2, rate=2.0)
    assert two.rate == api.Rate(2e12, api.RateFrom.GIVEN)
    assert two.hours == pytest.approx(two.flops / 2e12 / 3600)
    measured = api.plan(config, manager=manager, measure=True)
    assert measured.rate.origin is api.RateFrom.STEPS
    assert 1e7 < measured.rate.operations < api.plan(config, manager=manager).rate.operations * 2


def test_moments_go_to_the_host_where_nothing_else_makes_room(manager, monkeypatch):
    monkeypatch.setattr(optimizer, "_PIECE", 2**16)
    config = resolved(manager, "training.batch_size=4", teacher={**TINY_SIT, "depth": 2, "width": 128})
    whole = api.plan(config, manager=manager, device_memory=1000)
    optimizers = sum(network.optimizer for network in whole.networks)
    room = whole.total - whole.activations - optimizers / 4  # less than all that stays
    plan = api.plan(config, manager=manager, device_memory=room / USABLE / GIB)
    found = api.propose(config, plan, manager=manager)
    assert found.settings[0] == "runtime.offload_optimizer=true"
    assert found.plan.total <= plan.available


def test_networks_are_divided_where_nothing_else_makes_room(manager):
    config = resolved(manager, "training.batch_size=8", teacher={**TINY_SIT, "depth": 4, "width": 64})
    whole = api.plan(config, manager=manager, num_processes=2, device_memory=1000)
    memory = 0.95 * (whole.total - whole.activations) / USABLE / GIB  # not even the fixed part of a whole copy
    plan = api.plan(config, manager=manager, num_processes=2, device_memory=memory)
    found = api.propose(config, plan, manager=manager)
    assert found.settings[0] == "runtime.sharding=full"
    assert found.plan.total <= plan.available
