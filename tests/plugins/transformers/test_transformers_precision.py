"""bf16 and recomputed activations change a step by no more than their rounding explains."""

import copy
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from freeflow_toy.config import MLPStudentConfig
from freeflow_toy.mlp import MLPStudent
from freeflow_transformers.network import Block
from freeflow_transformers.students import FlowMapTransformer
from run_helpers import TINY_SIT
from torch.utils._python_dispatch import TorchDispatchMode

from freeflow_core import api
from freeflow_core.engine.run import Run
from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.scoring import Scoring
from freeflow_core.math.derivative import DerivativeMethod, directional_derivative

BF16 = 2.0**-8
"""Spacing of bf16 numbers at 1: 7 bits after the point, half of it lost to rounding."""


@pytest.fixture
def make_run(manager, tmp_path):
    """A small run whose every weight is random, so that no pass is still zero."""
    made = []

    def make(*settings, **overrides):
        values = {
            "name": "precision",
            "teacher": TINY_SIT | {"depth": 2, "width": 64},
            "student": "transformer",
            "objective": {"name": "freeflow", "guidance_min": 1.0, "guidance_max": 3.0},
            "codec": {"name": "states"},
            "training": {"images": 1000, "batch_size": 16},
            "evaluation": {"enabled": False},
            "runtime": {"device": "cpu", "threads": 1},
            **overrides,
        }
        config = api.resolve_config("distill", overrides=values, settings=settings, manager=manager)
        run = Run(config, "distill", manager, output=tmp_path / f"run-{len(made)}", resume=False, scorer=Scoring)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for role in run.state.roles.values():
                for parameter in role.network.parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        made.append(run)
        return run

    return make


def step(run):
    run.trainer.step()
    return run.trainer.read_metrics()


def weights(run):
    return {f"{file}/{name}": t for file, tensors in run.state.tensors().items() for name, t in tensors.items()}


def inputs(num=4):
    """(x_t, t, s, condition, guidance) of the small networks that ``make_network`` gives."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(num, 2, 4, 6, generator=generator)
    return x, torch.ones(num), torch.linspace(0, 0.9, num), torch.arange(num) % 5, torch.ones(num)


@contextmanager
def counted_blocks(network):
    calls = []
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    handles = [block.register_forward_pre_hook(lambda module, _: calls.append(module)) for block in blocks]
    yield calls
    for handle in handles:
        handle.remove()


# bf16


def test_bf16_keeps_losses_weights_moments_and_averages_in_float32(make_run, monkeypatch):
    run = make_run("runtime.precision=bf16")
    seen = {}
    losses = run.components.objective.losses

    def watched(*arguments):
        found = losses(*arguments)
        seen.update({name: loss.per_sample.dtype for name, loss in found.items()})
        seen.update({f"{n}/{term}": value.dtype for n, loss in found.items() for term, value in loss.terms.items()})
        return found

    monkeypatch.setattr(run.components.objective, "losses", watched)
    gradients = set()
    for parameter in run.state.roles["student"].network.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: gradients.add(p.grad.dtype))
    step(run)
    assert len(seen) > 4
    assert set(seen.values()) == {torch.float32}
    assert gradients == {torch.float32}
    assert {name.split("/")[0] for name in weights(run)} >= {"student", "student.ema", "student.optimizer"}
    dtypes = {name: tensor.dtype for name, tensor in weights(run).items() if name != "objective/images"}
    assert set(dtypes.values()) == {torch.float32}


@pytest.mark.parametrize("derivative", ["central", "forward-mode"])
def test_bf16_moves_the_loss_by_a_fraction_of_its_rounding(make_run, derivative):
    """Measured over four seeds: losses by at most 0.04, norms of gradients by 0.23, of the spacing at 1.

    Roundings of single products average out over rows, tokens and channels.
    """
    settings = (f"objective.derivative={derivative}", "seed=0")
    exact, rounded = step(make_run(*settings)), step(make_run(*settings, "runtime.precision=bf16"))
    for name in ("student/loss", "student/prediction_loss", "fake_velocity/loss"):
        assert 0 < abs(rounded[name] / exact[name] - 1) < BF16 / 4, name
    for name in ("student/gradient_norm", "fake_velocity/gradient_norm"):
        assert 0 < abs(rounded[name] / exact[name] - 1) < BF16, name


# Recomputed activations


def test_derivatives_bypass_recomputation_and_copies_inherit_it(make_network):
    plain = FlowMapTransformer(make_network(jump=True, guidance=True))
    switched = copy.deepcopy(plain)
    switched.enable_activation_checkpointing()
    again = copy.deepcopy(switched)
    x, t, s, labels, guidance = inputs()
    for method in (DerivativeMethod.FORWARD_MODE, DerivativeMethod.CENTRAL):
        expected, found = (
            directional_derivative(
                lambda s, student=student: student(x, t, s, labels, guidance),
                (s,), (torch.ones_like(s),), method=method, step=5e-3,
            )
            for student in (plain, again)
        )  # fmt: skip
        assert torch.equal(expected, found)
        assert expected.any()
    with counted_blocks(again) as calls:
        again(*inputs()).sum().backward()
    assert len(calls) == 4


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_with_recomputed_activations_trains_the_same_weights(make_run, precision):
    batch = ("training.batch_size=8", "training.accumulation=2")
    settings = ("objective.derivative=forward-mode", f"runtime.precision={precision}", *batch)
    runs = [make_run(*settings), make_run(*settings, "runtime.activation_checkpointing=true")]
    metrics = [[step(run)["student/loss"] for _ in range(2)] for run in runs]
    assert metrics[0] == metrics[1]
    expected, found = weights(runs[0]), weights(runs[1])
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    with counted_blocks(runs[1].state.roles["fake_velocity"].network) as calls:
        step(runs[1])
    assert len(calls) == 2 * 2 * 2  # twice for each of two micro-batches


def test_a_student_that_cannot_recompute_says_so(make_run):
    with pytest.raises(ConfigError, match=r"MLPStudent cannot recompute.*training\.accumulation"):
        MLPStudent(MLPStudentConfig(sample_shape=(2,))).enable_activation_checkpointing()
    with pytest.raises(ConfigError, match="activation_checkpointing=false"):
        make_run(
            "runtime.activation_checkpointing=true",
            teacher={"name": "gaussian-mixture", "layout": "ring"},
            student={"name": "mlp", "width": 8, "depth": 1},
        )


# Float32 products


def test_a_run_multiplies_as_it_was_asked_to_and_leaves_no_trace(make_run, monkeypatch):
    run = make_run("runtime.matmul_precision=high", "objective.derivative=central", "training.images=16")
    student, teacher, seen = run.state.roles["student"].network, run.components.teacher, {}
    monkeypatch.setattr("freeflow_core.engine.run.check_first_step", lambda *others: None)
    monkeypatch.setattr(run.trainer, "peek", lambda: SimpleNamespace(batch=None, draws=None))
    for name, network in (("student", student.network), ("teacher", teacher.network)):
        network.register_forward_pre_hook(
            lambda module, inputs, name=name: seen.setdefault(name, []).append(
                (torch.is_grad_enabled(), torch.get_float32_matmul_precision())
            )
        )
    before = torch.get_float32_matmul_precision()
    run.execute()
    assert seen["student"][:2] == [(True, "high"), (False, "highest")]  # the difference
    assert seen["teacher"][0] == (False, "high")
    assert torch.get_float32_matmul_precision() == before == "highest"


# Attention


class Kernels(TorchDispatchMode):
    """Counts the attention kernels that are called, and the softmax of attention without one."""

    def __init__(self):
        super().__init__()
        self.fused = self.softmax = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.fused += func.overloadpacket is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        self.softmax += func.overloadpacket in (torch.ops.aten._softmax, torch.ops.aten._safe_softmax)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("derivative", "fused_passes"), [("forward-mode", 3), ("central", 4)])
def test_attention_is_fused_in_every_pass_but_forward_mode(make_run, derivative, fused_passes):
    """The student and the fake velocity with gradient, the teacher, and differences."""
    run = make_run(f"objective.derivative={derivative}")
    with Kernels() as kernels:
        run.trainer.step()
    assert kernels.fused == 2 * fused_passes  # two blocks
    assert (kernels.softmax > 0) is (derivative == "forward-mode")
