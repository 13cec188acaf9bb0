"""Compiled blocks take the same steps, in a few shapes, wherever they are run."""

import copy
import json
import shutil
from contextlib import contextmanager

import pytest
import torch
from freeflow_guidance.autoguidance import AutoguidedTeacher
from freeflow_transformers.teachers import TransformerTeacher
from run_helpers import TINY_SIT
from torch._dynamo.utils import counters

from freeflow_core import api
from freeflow_core.engine.blocks import blocks, compile_blocks
from freeflow_core.engine.run import Run
from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.scoring import Scoring
from freeflow_core.math.derivative import DerivativeMethod, directional_derivative

TRACED = ("runtime.compile=true", "runtime.compile_backend=aot_eager")
"""All of torch.compile but the kernels, which a compiler of C++ would make."""


@pytest.fixture(autouse=True)
def _forget():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def configure(manager):
    def make(*settings, **overrides):
        values = {
            "name": "compiled",
            "teacher": TINY_SIT | {"depth": 2, "width": 16},
            "student": "transformer",
            "objective": {
                "name": "freeflow", "guidance_min": 1.0, "guidance_max": 3.0, "guidance_interval": [0.2, 0.7],
            },
            "codec": {"name": "states"},
            "training": {"images": 64, "batch_size": 16, "ema": {"halflife_images": 16}},
            "evaluation": {"enabled": False},
            "runtime": {"device": "cpu", "threads": 1, "precision": "float64"},
            "samples": {"per_class": 1},
            "logging": {"every_images": 16},
            **overrides,
        }  # fmt: skip
        return api.resolve_config("distill", overrides=values, settings=settings, manager=manager)

    return make


@contextmanager
def running(config, manager, folder):
    run = Run(config, "distill", manager, output=folder, resume=False, scorer=Scoring)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for role in run.state.roles.values():
            for parameter in role.network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    with run._ending:
        yield run


def metrics(run, steps=2):
    for _ in range(steps):
        run.trainer.step()
    return run.trainer.read_metrics()


def assert_same_steps(configure, manager, folder, *settings, relative=1e-9, backend=TRACED):
    found = []
    for way in ((), backend):
        with running(configure(*way, *settings), manager, folder / f"run-{len(found)}") as run:
            values = metrics(run)
            names = {file: list(tensors) for file, tensors in run.state.tensors().items()}
            roles = tuple(run.state.roles)
            found.append(({name: value for name, value in values.items() if name.startswith(roles)}, names))
    (exact, names), (compiled, same) = found
    assert counters["stats"]["unique_graphs"] >= 3
    assert names == same
    assert exact["student/loss"] > 0
    for name, value in exact.items():
        assert compiled[name] == pytest.approx(value, rel=relative), name


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("freeflow-prediction", ("objective.derivative=forward-mode", "runtime.activation_checkpointing=true")),
        ("freeflow", ("training.accumulation=2", "runtime.compile_backend=eager")),
    ],
)
def test_compiled_networks_take_the_same_steps(configure, manager, tmp_path, objective, settings):
    assert_same_steps(configure, manager, tmp_path, f"objective.name={objective}", *settings)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("derivative", ["forward-mode", "central", "one-sided"])
def test_kernels_of_the_default_backend_move_a_step_by_rounding(configure, manager, tmp_path, derivative):
    if shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    settings = (f"objective.derivative={derivative}", "teacher.width=64")
    settings += ("objective.correction_guidance_interval=[0.2, 0.8]",)
    assert_same_steps(configure, manager, tmp_path, *settings, backend=("runtime.compile=true",))


def test_guided_rows_that_change_from_step_to_step_compile_nothing_anew(configure, manager, tmp_path):
    config = configure("runtime.compile=true", "runtime.compile_backend=eager")
    with running(config, manager, tmp_path / "run") as run:
        asked, guided = [], []
        teacher = run.components.teacher
        extrapolated, velocity = type(teacher).guided_velocity, type(teacher).velocity

        def watched(x_t, t, condition, weight):
            guided.append(int((weight != 1).sum()))
            return extrapolated(teacher, x_t, t, condition, weight)

        teacher.guided_velocity = watched
        teacher.velocity = lambda x_t, *others: (asked.append(len(x_t)), velocity(teacher, x_t, *others))[1]
        metrics(run, 16)
    assert set(asked) <= {16, 20, 24, 28, 32}
    assert len(set(guided)) > len(set(asked)) > 1
    others = 3  # the student's gradient and its difference, and the fake velocity
    assert counters["stats"]["unique_graphs"] == len(set(asked)) + others


@pytest.mark.parametrize("autoguided", [False, True])
def test_rows_that_fill_up_a_batch_change_no_other(make_network, autoguided):
    plain = TransformerTeacher(make_network(dtype=torch.float64))
    if autoguided:
        plain = AutoguidedTeacher(plain, TransformerTeacher(make_network(seed=1, dtype=torch.float64)))
    filling = copy.deepcopy(plain)
    filling.is_compiled = True
    generator = torch.Generator().manual_seed(0)
    for number in (1, 6, 9):
        x = torch.randn(number, *plain.sample_shape, generator=generator, dtype=torch.float64)
        t, labels = torch.rand(number, generator=generator, dtype=torch.float64), torch.arange(number) % 5
        for guided in range(number + 1):
            weight = torch.where(torch.arange(number) < guided, 2.0, 1.0)
            expected, found = (way.guided_velocity(x, t, labels, weight) for way in (plain, filling))
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_copy_of_a_compiled_network_runs_its_own_weights(make_network):
    network = make_network(jump=True)
    expected = copy.deepcopy(network)
    compile_blocks(network, "student", "eager")
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    x, t = torch.randn(2, 2, 4, 6), torch.rand(2)
    assert torch.equal(copied(x, t, torch.arange(2), t), expected(x, t, torch.arange(2), t))
    assert counters["stats"]["unique_graphs"] == 1
    assert network.state_dict().keys() == expected.state_dict().keys()
    assert len(blocks(network)) == len(network.blocks)


class Pair(torch.nn.Module):
    """A block of several inputs and outputs, one of which the derivative does not pass."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, x, context, *, scale=None):
        return self.layer(x).sin() * scale["factor"], {"context": context + 1, "number": 3}


class Pairs(torch.nn.Module):
    """Two of them."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([Pair(), Pair()])

    def forward(self, x, factor):
        context = torch.ones(2)
        for layer in self.layers:
            x, found = layer(x, context, scale={"factor": factor})
            context = found["context"]
        return x * context.sum() * found["number"]


def test_tangents_pass_compiled_blocks_of_any_signature():
    torch.manual_seed(0)
    network = Pairs().double()
    inputs = (torch.randn(4, 3).double(), torch.rand(()).double())
    tangents = (torch.randn(4, 3).double(), torch.rand(()).double())

    def derivative():
        method = DerivativeMethod.FORWARD_MODE
        return directional_derivative(network, inputs, tangents, method=method, step=0.0, compiled=True)

    expected = derivative()
    torch.testing.assert_close(torch.func.jvp(network, inputs, tangents)[1], expected)
    compile_blocks(network, "student", "aot_eager")
    torch.testing.assert_close(derivative(), expected, rtol=1e-12, atol=1e-12)
    assert counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(torch.func.jvp(network, inputs, tangents)[1], expected, rtol=1e-12, atol=1e-12)


class Ordered(torch.nn.Module):
    """One block, which tells whether the rows that it is given lie one after another."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([self.Layer()])

    class Layer(torch.nn.Linear):
        def __init__(self):
            super().__init__(3, 3)

        def forward(self, x):
            return super().forward(x), x.is_contiguous()

    def forward(self, x):
        return self.layers[0](x)


@pytest.mark.parametrize("contiguous", [True, False])
def test_compiled_blocks_are_given_rows_that_lie_one_after_another(contiguous):
    network, x = Ordered(), torch.randn(3, 4).T
    x = x.contiguous() if contiguous else x
    expected, _ = network(x)
    compile_blocks(network, "student", "eager")
    found, in_order = network(x)
    assert in_order
    torch.testing.assert_close(found, expected)


def test_a_compiled_run_is_resumed_scored_and_read_without(configure, manager, tmp_path):
    settings = ("runtime.compile=true", "runtime.compile_backend=eager")
    output, length = tmp_path / "run", "training.images=64"
    api.distill(configure(*settings, length, "training.stop_at_images=32"), output=output, manager=manager)
    torch.compiler.reset()
    more = configure(*settings, length, "training.stop_at_images=48")
    api.distill(more, output=output, resume=True, manager=manager)
    recomputing = configure(length, "runtime.activation_checkpointing=true")
    found = api.distill(recomputing, output=output, resume=True, manager=manager)
    expected = api.distill(configure(length), output=tmp_path / "plain", manager=manager)
    first, second = (api.load_student(outcome.folder).student.state_dict() for outcome in (found, expected))
    assert first.keys() == second.keys()
    for name, tensor in second.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-6)
    written = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    told = [record["images"] for record in map(json.loads, written) if record.get("first_step_seconds", 0) > 0]
    assert told == [16, 48]


def test_what_cannot_compile_is_said_before_a_step_or_with_a_way_out(configure, manager, tmp_path):
    def broken(graph, inputs):
        raise OSError("no compiler found")

    torch._dynamo.register_backend(broken, name="broken")
    for backend, told in (("nonsense", "inductor"), ("broken", "no compiler found.*runtime.compile=false")):
        config = configure("runtime.compile=true", f"runtime.compile_backend={backend}")
        with pytest.raises(ConfigError, match=told):
            api.distill(config, output=tmp_path / backend, manager=manager)
