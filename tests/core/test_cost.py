"""What a run will cost: the step on tensors without memory holds and computes, byte for byte, what the real one does."""

import dataclasses
from typing import Any

import pytest
import torch
from freeflow_toy.config import GaussianMixtureConfig
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher
from objective_helpers import with_normalised
from plugin_helpers import plugin
from run_helpers import TINY_SIT
from torch import nn

from freeflow_core import api
from freeflow_core.engine import optimizer
from freeflow_core.errors import ConfigError, DownloadError
from freeflow_core.plugin import Component, Manager
from freeflow_core.tools.cost import estimate
from freeflow_core.tools.cost import plan as planning
from freeflow_core.tools.cost.fake import FakeTensors
from freeflow_core.tools.cost.step import ACTIVATIONS, MemoryTracker

MIB = 2**20


SMALL: dict[str, Any] = {
    "teacher": TINY_SIT,
    "reference": None,
    "evaluation": {"enabled": False, "evaluators": []},
    "trackers": [],
    "runtime": {"device": "cpu"},
    "training": {"batch_size": 8},
}
"""One block, 16 tokens: a plan in a second."""


def plan(manager, *settings, num_processes=1, **overrides):
    config = api.resolve_config(
        "distill", preset="digits", overrides={**SMALL, **overrides}, settings=settings, manager=manager
    )
    return api.plan(config, num_processes=num_processes, manager=manager)


def nothing_is_small(monkeypatch):
    monkeypatch.setattr(estimate, "_SMALL", 0)


def test_the_tracker_follows_storages_until_they_are_freed():
    x = torch.zeros(MIB // 4)
    with MemoryTracker() as memory:
        y = x + 1
        z = y.view(2, -1)[0] + y.view(2, -1)[1]  # views take nothing, z half a MiB
        del y
        w = z * 2
        assert memory.peak == MIB + MIB // 2
        memory.restart()
        assert memory.peak == MIB
        del z, w
        _ = x + 1
    assert memory.peak == MIB
    assert memory.largest == {ACTIVATIONS: MIB}


def test_the_tracker_keeps_kinds_apart_and_counts_shared_storages_once():
    network = nn.Linear(256, 256, bias=False)
    with MemoryTracker() as memory:
        assert memory.assign("weights", network.parameters()) == 256 * 256 * 4
        memory.restart()
        out = network(torch.ones(1, 256))
        out.sum().backward()
        assert memory.assign("gradients", [network.weight.grad, network.weight.grad.T]) == 2 * 256 * 256 * 4
    assert memory.largest["weights"] == memory.largest["gradients"] == 256 * 256 * 4
    assert memory.peak >= 2 * 256 * 256 * 4


def test_the_tracker_counts_operations_of_products_and_attention():
    with MemoryTracker() as memory:
        a = torch.ones(3, 4, requires_grad=True)
        (a @ torch.ones(4, 5)).sum().backward()
    assert memory.flops == 2 * (2 * 3 * 4 * 5)
    q = torch.ones(2, 3, 8, 16)
    with MemoryTracker() as memory:
        nn.functional.scaled_dot_product_attention(q, q, q)
    assert memory.flops == 2 * 2 * (2 * 3 * 8 * 8 * 16)


def faked(device, *, width=64):
    with torch.device("meta"):
        network = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
    fake = FakeTensors(device)
    fake.convert(network)
    return fake, network


def test_values_stay_where_no_fake_tensor_is_involved():
    fake, network = faked("cpu")
    with fake.active():
        t = torch.tensor([0.5, 1.0, 0.2])
        rows = (t > 0.3).nonzero().flatten()
        out = network(torch.ones(3, 64))[rows]
        assert rows.tolist() == [0, 1]
        assert out.shape == (2, 64)
        assert out.sum().item() == 0.0  # there is no value; whoever reads one goes on with this
    with pytest.raises((RuntimeError, TypeError)):
        out.numpy()


def test_autocast_works_without_memory_and_cuda_runs_layer_norm_in_float32():
    for device, expected in (("cpu", torch.bfloat16), ("cuda", torch.float32)):
        fake, network = faked(device)
        with fake.active(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert network(torch.ones(2, 64)).dtype is torch.bfloat16
            assert network[0](torch.ones(2, 64, dtype=torch.bfloat16)).dtype is expected


def test_attention_is_fused_unless_something_forbids_it():
    """The (heads, T, T) matrix is there with the math kernel alone, which forward mode forces."""
    shape, matrix = (1, 4, 512, 16), 4 * 512 * 512 * 4
    for device, forbidden, found in (
        ("cpu", False, False),
        ("cuda", False, False),
        ("mps", False, True),
        ("cpu", True, True),
    ):
        fake = FakeTensors(device)
        network = nn.Linear(16, 16)
        fake.convert(network)
        with fake.active(), MemoryTracker() as memory, torch.no_grad():
            q = network(torch.ones(shape))
            if forbidden:
                with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
                    nn.functional.scaled_dot_product_attention(q, q, q)
            else:
                nn.functional.scaled_dot_product_attention(q, q, q)
        assert (memory.peak > matrix) is found, (device, forbidden)


@pytest.mark.parametrize(
    "settings",
    [
        ("runtime.activation_checkpointing=true", "runtime.precision=bf16", "objective.derivative=forward-mode"),
        ("training.accumulation=2", "runtime.precision=float64"),
        ("training.optimizer.moments=8bit",),
    ],
)
def test_a_plan_without_memory_equals_one_that_takes_the_real_step(manager, monkeypatch, settings):
    real = plan(manager, *settings)
    nothing_is_small(monkeypatch)
    with monkeypatch.context() as context:
        context.setattr(estimate, "_on_few_rows", None)
        planned = plan(manager, *settings)
    assert planned.extrapolated_from is real.extrapolated_from is None
    assert planned.rate.operations > 1e8
    assert planned.rate.origin is api.RateFrom.PRODUCTS
    same = {"free": None, "rate": None}
    assert dataclasses.replace(planned, **same) == dataclasses.replace(real, **same)


def test_a_plan_has_passes_and_memory_of_every_network(manager):
    found = plan(manager, "objective.derivative=central")
    student, fake, teacher = (found.network(name) for name in ("student", "fake_velocity", "teacher"))
    assert (student.gradient_passes, student.other_passes) == (1.0, 1.5)
    assert (fake.gradient_passes, fake.other_passes) == (0.25, 0.0)
    assert (teacher.gradient_passes, teacher.other_passes) == (0.0, 1.0)
    assert student.gradients == 4 * student.parameters
    assert student.optimizer == 2 * student.gradients + 4
    assert student.average == student.weights
    assert (teacher.gradients, teacher.optimizer, teacher.average, fake.average) == (0, 0, 0, 0)
    assert list(found.memory) == [
        "teacher", "weights", "gradients", "optimizer", "average", "fake_velocity", "activations", "buckets"
    ]  # fmt: skip
    assert found.total == sum(n.memory for n in found.networks) + found.activations
    assert found.total - student.gradients - fake.gradients <= found.peak < found.total
    assert found.flops == found.flops_per_step * found.steps
    assert found.load_report
    assert found.teacher


def test_checkpointing_and_accumulation_trade_passes_for_activations(manager):
    settings = ("training.batch_size=32", "objective.adaptive=true", "teacher.depth=3")
    whole = plan(manager, *settings)
    checkpointed = plan(manager, *settings, "runtime.activation_checkpointing=true")
    halved = plan(manager, *settings, "training.accumulation=2")
    assert checkpointed.activations < 0.65 * whole.activations
    assert 1.1 < checkpointed.flops_per_step / whole.flops_per_step < 1.3
    assert halved.activations < 0.6 * whole.activations
    # The correction's quarter passes through the student once more, and nothing else.
    assert halved.network("student").other_passes == whole.network("student").other_passes + 0.25
    assert [halved.network(name) for name in ("teacher", "fake_velocity")] == [
        whole.network(name) for name in ("teacher", "fake_velocity")
    ]
    assert halved.warnings == whole.warnings == ()


def test_moments_take_fewer_bytes_or_the_hosts(manager, monkeypatch):
    monkeypatch.setattr(optimizer, "_PIECE", 2**16)
    full, eight, host = (
        plan(manager, "runtime.device=cuda", "teacher.width=128", f"training.optimizer.moments={bits}", *more)
        for bits, *more in (("full",), ("8bit",), ("full", "runtime.offload_optimizer=true"))
    )
    student, room = full.network("student").optimizer, host.network("student").optimizer
    assert room < 0.3 * student
    assert eight.network("student").optimizer - room == pytest.approx(student / 4, rel=0.1)
    assert [n.offloaded for n in host.networks] == pytest.approx([0, student, student], rel=0.01)
    assert full.total - host.total == pytest.approx(2 * (student - room), rel=0.01)
    assert full.peak > eight.peak > host.peak


def test_means_of_an_objective_that_is_not_in_parts_take_a_second_pass():
    manager = with_normalised()
    choice = {"objective": {"name": "normalised"}}
    whole, halved = (plan(manager, *s, **choice) for s in ((), ("training.accumulation=2",)))
    assert [whole.network(name).other_passes for name in ("student", "teacher")] == [0, 1]
    assert [halved.network(name).other_passes for name in ("student", "teacher")] == [1, 2]
    assert (len(halved.warnings), len(whole.warnings)) == (1, 0)


def test_two_micro_batches_tell_what_many_cost(manager, monkeypatch):
    settings = ("training.batch_size=16", "training.accumulation=4", "objective.guidance_max=1.0")
    short = plan(manager, *settings)
    monkeypatch.setattr(planning, "_shortened", lambda config, num_processes: config)
    long = plan(manager, *settings)
    assert (short.networks, short.flops_per_step, short.rows) == (long.networks, long.flops_per_step, long.rows)
    assert short.peak == pytest.approx(long.peak, rel=2e-2)  # of correction rows, two states each until lambda is known
    with pytest.raises(ConfigError, match="cannot be split evenly over 3 processes x 4"):
        plan(manager, *settings, num_processes=3)


def test_processes_share_the_batch_and_exchange_gradients(manager):
    one, two = plan(manager, "training.batch_size=64"), plan(manager, "training.batch_size=64", num_processes=2)
    assert (one.rows, two.rows) == (64, 32)
    assert two.buckets == sum(network.gradients for network in two.networks)
    assert two.memory["gradients"] == one.memory["gradients"]
    assert two.activations < 0.6 * one.activations
    assert two.flops_per_step == pytest.approx(one.flops_per_step, rel=1e-6)
    with pytest.raises(ConfigError, match="cannot be split evenly over 3 processes"):
        plan(manager, "training.batch_size=64", num_processes=3)


def test_divided_networks_take_their_share(manager):
    ways = (("none",), ("full",), ("hybrid", "runtime.shard_size=2"))
    whole, full, hybrid = (
        plan(manager, "training.batch_size=64", f"runtime.sharding={way}", *size, num_processes=4)
        for way, *size in ways
    )
    for kind in ("weights", "gradients", "optimizer", "average"):
        assert full.memory[kind] == pytest.approx(whole.memory[kind] / 4, rel=1e-3)
        assert hybrid.memory[kind] == pytest.approx(whole.memory[kind] / 2, rel=1e-3)
    assert whole.memory["teacher"] / 4 < full.memory["teacher"] < whole.memory["teacher"]
    assert full.activations == whole.activations
    assert full.peak < whole.peak
    assert full.total < hybrid.total < whole.total
    with pytest.raises(ConfigError, match="shard_size"):
        plan(manager, "runtime.sharding=hybrid", "runtime.shard_size=3", num_processes=4)


def test_what_does_not_fit_is_said(manager, monkeypatch):
    needed = plan(manager).total
    monkeypatch.setattr(planning, "free_memory", lambda device: needed)
    assert plan(manager).fits
    monkeypatch.setattr(planning, "free_memory", lambda device: needed - 1)
    found = plan(manager)
    assert not found.fits
    assert len(found.warnings) == 1


def test_a_plan_leaves_the_random_state_as_it_was(manager):
    before = torch.get_rng_state()
    plan(manager, evaluation={"evaluators": ["spread"]})
    assert torch.equal(torch.get_rng_state(), before)


def test_a_plan_for_pretraining_has_no_teacher(manager):
    config = api.resolve_config(
        "pretrain", preset="digits", settings=["trackers=[]", "student.depth=1"], manager=manager
    )
    found = api.plan(config, manager=manager)
    assert [network.name for network in found.networks] == ["student"]
    assert found.load_report is None


class StubbornTeacher(GaussianMixtureTeacher):
    """Looks at values, which tensors without memory do not have."""

    def velocity(self, x_t, t, condition):
        if x_t.square().mean(dim=1).max().item() == 0:
            raise ValueError("all states are zero")
        return super().velocity(x_t, t, condition)


class DistantTeacher(GaussianMixtureTeacher):
    """Its weights are elsewhere; its architecture is known."""

    @classmethod
    def from_config(cls, config, context):
        if context.device.type != "meta":
            raise DownloadError("nothing is fetched for a plan")
        return super().from_config(config, context)


@pytest.fixture
def stubborn():
    return with_teacher("stubborn", StubbornTeacher)


def with_teacher(name, teacher):
    target, config = f"{__name__}:{teacher.__name__}", f"{GaussianMixtureConfig.__module__}:GaussianMixtureConfig"
    manager = Manager.load()
    manager.register(plugin(teachers=[Component(name, target, config, "a mixture", "test")]), name)
    return manager


def test_a_small_step_is_taken_itself_unless_its_weights_are_elsewhere(stubborn):
    distant, student = with_teacher("distant", DistantTeacher), {"name": "mlp", "width": 64, "depth": 2}
    taken = plan(stubborn, teacher={"name": "stubborn", "layout": "ring"}, student=student)
    without = plan(distant, teacher={"name": "distant", "layout": "ring"}, student=student)
    assert taken.extrapolated_from is without.extrapolated_from is None
    same = {"free": None, "rate": None, "teacher": ""}
    assert dataclasses.replace(taken, **same) == dataclasses.replace(without, **same)


def test_where_values_are_needed_a_few_real_rows_are_extrapolated(stubborn, monkeypatch):
    choices = {"student": {"name": "mlp", "width": 64, "depth": 2}}
    settings = ("training.batch_size=512",)
    nothing_is_small(monkeypatch)
    found = plan(stubborn, *settings, teacher={"name": "stubborn", "layout": "ring"}, **choices)
    assert found.extrapolated_from == 16
    assert found.warnings
    exact = plan(stubborn, *settings, teacher={"name": "gaussian-mixture", "layout": "ring"}, **choices)
    assert exact.extrapolated_from is None
    assert found.activations == pytest.approx(exact.activations, rel=0.02)
    assert found.peak == pytest.approx(exact.peak, rel=0.02)
    assert found.flops_per_step == pytest.approx(exact.flops_per_step, rel=1e-6)
    assert [n.gradient_passes for n in found.networks] == [n.gradient_passes for n in exact.networks]
    monkeypatch.setattr(estimate, "free_memory", lambda device: 1000)
    with pytest.raises(ConfigError, match="Plan it on the machine"):
        plan(stubborn, *settings, teacher={"name": "stubborn", "layout": "ring"}, **choices)


def test_xl2_at_batch_256_takes_seconds_and_no_memory(manager):
    """674,816,272 weights and 118.6 billion multiplications an image: Peebles & Xie 2022, table 1 (118.64 GFLOPs)."""
    found = plan(
        manager, "training.batch_size=256", "runtime.precision=bf16", "runtime.device=cuda", "objective.derivative=central",
        teacher={"name": "sit-repa", "initialise": "random"},
    )  # fmt: skip
    assert found.extrapolated_from is None
    assert found.network("teacher").parameters == 674_816_272
    passes = sum(3 * network.gradient_passes + network.other_passes for network in found.networks)
    assert found.flops_per_step == pytest.approx(2 * 118.64e9 * 256 * passes, rel=0.02)
    assert 100 * 2**30 < found.peak < 200 * 2**30
