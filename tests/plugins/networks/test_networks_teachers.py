"""The teachers callable and torch-file: called as they want to be, in their own dtype, and only with a permission."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from freeflow_core.config import ComponentChoice
from freeflow_core.engine.build import Builder
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.plugin import Manager, Registry
from freeflow_core.testing.exact import GaussianTeacher

CPU = torch.device("cpu")
SOURCE = """
import torch
from torch import nn

LOADED = []

def plain(x, t):
    return x * t[:, None]

def labelled(x, t, y):
    return x * y[:, None].to(x.dtype)

def swapped(t, x, *, y=None, shift=0.0):
    return (x + shift) * t[:, None] + (0 if y is None else y.float()[:, None])

def steps(x, t):
    assert t.dtype is torch.int64
    return x * t[:, None].to(x.dtype)

def wide(x, t):
    return torch.cat([x, 100 * x], 1)

def wrapped(x, t):
    return (x, "more")

def wordy(x, t):
    return {"sample": x, "hidden": x}

def mapped(x, t):
    return {"sample": 2 * x}

def broken(x, t):
    raise RuntimeError("no such luck")

def two(x, t, text=None, pooled=None):
    return x + text.sum((1, 2))[:, None] + pooled.sum(1)[:, None]

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.dropout = nn.Dropout(0.5)
        self.width = width

    def forward(self, x, t):
        return self.dropout(self.inner(x)) * t[:, None]

net = Net()
make = lambda width: Net(width)
number = 3
"""


@pytest.fixture
def networks(tmp_path):
    path = tmp_path / "my_networks.py"
    path.write_text(SOURCE, "utf-8")
    return path


@pytest.fixture
def build():
    manager = Manager.load(trust=True)
    builder = Builder(Registry(manager), CPU, 0)

    def make(name, **options):
        options = {"sample_shape": [2], "arguments": ["x", "t"], **options}
        return builder.teacher(ComponentChoice(name=name, options=options))

    return make


def ask(teacher, t=0.25, labels=None, dtype=torch.float32):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtype)
    return x, teacher.velocity(x, torch.full((2,), t), labels)


def test_nothing_is_imported_or_read_without_a_permission(networks, registry, monkeypatch):
    builder = Builder(registry, CPU, 0)
    options = {"sample_shape": [2], "network": f"{networks}:plain"}
    with pytest.raises(
        ConfigError, match=r"callable' would import and call .*my_networks.py:plain.*--trust.*trust=True"
    ):
        builder.teacher(ComponentChoice(name="callable", options=options))
    assert "freeflow_network_my_networks" not in sys.modules
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"torch-file' would run the program in net.pt.*--trust"):
        builder.teacher(ComponentChoice(name="torch-file", options={"sample_shape": [2], "file": "net.pt"}))


def test_functions_modules_classes_and_factories(networks, build):
    x, v = ask(build("callable", network=f"{networks}:plain"))
    assert torch.equal(v, 0.25 * x)
    assert build("callable", network=f"{networks}:Net").network._function.width == 4
    assert build("callable", network=f"{networks}:make", options={"width": 7}).network._function.width == 7
    teacher = build("callable", network=f"{networks}:net")
    theirs = sys.modules["freeflow_network_my_networks"].net
    assert teacher.network._function is not theirs
    assert theirs.training
    assert all(parameter.requires_grad for parameter in theirs.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_network_stays_in_evaluation_mode(networks, build):
    teacher = build("callable", network=f"{networks}:Net")
    teacher.train()
    assert torch.equal(ask(teacher)[1], ask(teacher)[1])
    assert not teacher.network._function.dropout.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "no_such_module_here:f"}, r"cannot be imported: ModuleNotFoundError"),
        ({"network": "{}:number"}, r"is a int, which cannot be called"),
        ({"network": "{}:Net", "options": {"depth": 3}}, r"could not make a network of teacher.options=\{'depth': 3\}"),
        ({"network": "{}:broken"}, r"failed when it was asked about 2 states \(2, 2\): RuntimeError: no such luck"),
        ({"network": "{}:wide"}, r"with \(2, 4\); expected the same shape.*teacher.extra_channels=drop"),
        ({"network": "{}:wordy"}, r"answered with a dict of sample, hidden; expected a tensor"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(networks, build, options, message):
    options = {**options, "network": options["network"].format(networks)}
    with pytest.raises(ConfigError, match=message):
        build("callable", **options)


def test_arguments_keywords_labels_and_channels(networks, build):
    x, v = ask(build("callable", network=f"{networks}:swapped", arguments=["t", "x"], keywords={"shift": 1.0}))
    assert torch.equal(v, 0.25 * (x + 1))
    options = {"arguments": ["t", "x"], "condition": "labels", "num_classes": 3, "condition_argument": "y"}
    teacher = build("callable", network=f"{networks}:swapped", **options)
    assert torch.equal(ask(teacher, labels=torch.tensor([2, 0]))[1], 0.25 * x + torch.tensor([[2.0], [0.0]]))
    with pytest.raises(ConfigError, match="name the unconditional label"):
        teacher.null_condition(torch.zeros(2, dtype=torch.long))
    teacher = build("callable", network=f"{networks}:labelled", arguments=["x", "t", "condition"], condition="labels", num_classes=3, null_label=5)  # fmt: skip
    labels = torch.tensor([2, 1])
    assert torch.equal(ask(teacher, labels=labels)[1], x * labels[:, None])
    assert teacher.null_condition(labels).tolist() == [5, 5]
    guided = teacher.guided_velocity(x, torch.full((2,), 0.5), labels, torch.tensor([2.0, 1.0]))
    assert torch.equal(guided, x * torch.tensor([[-1.0], [1.0]]))
    assert teacher.balanced_condition(torch.arange(4)).tolist() == [0, 1, 2, 0]
    drawn = teacher.sample_condition(PhiloxDraws(0, torch.arange(100), device=CPU, dtype=torch.float32))
    assert set(drawn.tolist()) == {0, 1, 2}
    assert torch.equal(ask(build("callable", network=f"{networks}:wide", extra_channels="drop"))[1], x)
    assert torch.equal(ask(build("callable", network=f"{networks}:wrapped"))[1], x)
    assert torch.equal(ask(build("callable", network=f"{networks}:steps", time_type="int", time_scale=1000), t=0.2504)[1], 250 * x)  # fmt: skip


def test_embeddings_are_rows_of_a_file(networks, build, tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "text": torch.randn(3, 2, 4, generator=generator),
        "pooled": torch.randn(3, 5, generator=generator),
        "negative_text": torch.zeros(1, 2, 4),
        "negative_pooled": torch.zeros(1, 5),
    }
    save_file(tensors, tmp_path / "prompts.safetensors")
    np.savez(tmp_path / "prompts.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    for file in ("prompts.safetensors", "prompts.npz"):
        teacher = build("callable", network=f"{networks}:two", condition="embeddings", embeddings=tmp_path / file)
        labels = torch.tensor([2, 0])
        x, v = ask(teacher, labels=labels)
        expected = x + (tensors["text"].sum((1, 2)) + tensors["pooled"].sum(1))[labels][:, None]
        assert torch.allclose(v, expected, atol=1e-5)
        assert teacher.num_classes == 3
        null = teacher.null_condition(labels)
        assert torch.equal(ask(teacher, labels=null)[1], x)
    one = {"y": tensors["pooled"].sum(1)}
    save_file(one, tmp_path / "one.safetensors")
    teacher = build("callable", network=f"{networks}:swapped", arguments=["t", "x"], condition="embeddings",
                    embeddings=tmp_path / "one.safetensors", condition_argument="y")  # fmt: skip
    assert torch.allclose(ask(teacher, labels=labels)[1], 0.25 * x + one["y"][labels][:, None])
    with pytest.raises(ConfigError, match="negative_NAME"):
        teacher.null_condition(labels)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)}, r"equally many in each; got a \(2, 1\), b \(3, 1\)"),
        ({"a": torch.zeros(2, 1), "negative_a": torch.zeros(2, 1)}, r"negative_NAME \(1, ...\).*: a"),
    ],
)
def test_embeddings_that_do_not_belong_together_are_refused(networks, build, tmp_path, tensors, message):
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(ConfigError, match=message):
        build("callable", network=f"{networks}:two", condition="embeddings", embeddings=tmp_path / "file.safetensors")


def test_a_mapping_of_one_tensor_is_an_answer(networks, build):
    x, v = ask(build("callable", network=f"{networks}:mapped"))
    assert torch.equal(v, 2 * x)


def test_weights_are_read_without_running_code(networks, build, tmp_path):
    state = {"inner.weight": torch.full((2, 2), 2.0), "inner.bias": torch.zeros(2)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    for file in ("w.safetensors", "w.pt"):
        x, v = ask(build("callable", network=f"{networks}:Net", weights=tmp_path / file))
        assert torch.equal(v, 0.25 * 2 * x.sum(1, keepdim=True).expand(2, 2))
    torch.save({"inner.weight": state["inner.weight"]}, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match=r"missing: inner.bias"):
        build("callable", network=f"{networks}:Net", weights=tmp_path / "part.pt")
    torch.save({"a": 3}, tmp_path / "no.pt")
    with pytest.raises(CheckpointError, match="no state dict"):
        build("callable", network=f"{networks}:Net", weights=tmp_path / "no.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match="without running code"):
        build("callable", network=f"{networks}:Net", weights=tmp_path / "whole.pt")


def test_weights_are_found_in_a_training_checkpoint(networks, build, tmp_path):
    inner = nn.ModuleDict({"inner": nn.Linear(2, 2)})
    with torch.no_grad():
        inner["inner"].weight.fill_(2.0)
        inner["inner"].bias.zero_()
    state, file = inner.state_dict(), tmp_path / "checkpoint.pt"
    average = torch.optim.swa_utils.AveragedModel(inner)
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in parallel.items()}
    torch.save({"step": 3, "ema": average.state_dict(), "state": {"model": parallel, "optimizer": {}}}, file)
    torch.save(compiled, tmp_path / "compiled.pt")
    for path, key in ((file, "ema"), (file, "state.model"), (tmp_path / "compiled.pt", None)):
        x, v = ask(build("callable", network=f"{networks}:Net", weights=path, weights_key=key))
        assert torch.equal(v, 0.25 * 2 * x.sum(1, keepdim=True).expand(2, 2))
    with pytest.raises(CheckpointError, match=r"'step' \(int\), 'ema' \(.*teacher.weights_key"):
        build("callable", network=f"{networks}:Net", weights=file)
    with pytest.raises(CheckpointError, match=r"no 'emma'.*'ema'"):
        build("callable", network=f"{networks}:Net", weights=file, weights_key="emma")
    with pytest.raises(CheckpointError, match=r"no 'step.model'.*is one int"):
        build("callable", network=f"{networks}:Net", weights=file, weights_key="step.model")
    with pytest.raises(ConfigError, match=r"weights_key goes with"):
        build("callable", network=f"{networks}:Net", weights_key="ema")


@pytest.mark.parametrize("dtype", ["bf16", "float64", None])
def test_a_network_keeps_a_dtype_asked_for_and_the_states_theirs(networks, build, dtype):
    teacher = build("callable", network=f"{networks}:Net", dtype=dtype).double()
    own = {"bf16": torch.bfloat16, "float64": torch.float64, None: torch.float64}[dtype]
    assert teacher.network._function.inner.weight.dtype is own
    assert ask(teacher)[1].dtype is torch.float32
    assert ask(teacher, dtype=torch.float64)[1].dtype is torch.float64


class Exact(nn.Module):
    """The velocity of N(0.5, 0.25), pointing at data, with data at 1: exportable."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t):
        t = (1 - t)[:, None]
        slope = (t - (1 - t) * 0.25) / ((1 - t) ** 2 * 0.25 + t**2)
        return -(slope * (x - (1 - t) * self.mean) - self.mean)


@pytest.fixture
def programs(tmp_path):
    x, t = torch.randn(2, 2), torch.rand(2)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(Exact(), (x, t), dynamic_shapes=({0: batch}, {0: batch}))
    torch.export.save(exported, tmp_path / "net.pt2")
    torch.export.save(torch.export.export(Exact(), (x, t)), tmp_path / "fixed.pt2")
    torch.jit.save(torch.jit.script(Exact()), str(tmp_path / "net.pt"))
    torch.save(Exact().state_dict(), tmp_path / "state.pt")
    return tmp_path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_programs_in_files_are_teachers(programs, build):
    exact = GaussianTeacher(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5]))
    for file in ("net.pt2", "net.pt"):
        teacher = build("torch-file", file=programs / file, time_direction="data-at-1")
        x, v = ask(teacher)
        assert torch.allclose(v, exact.velocity(x, torch.full((2,), 0.25), None), atol=1e-5)
        teacher.train().double().eval()
        assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_files_that_hold_no_program_are_refused(programs, build):
    with pytest.raises(ConfigError, match="needs a dynamic first dimension"):
        build("torch-file", file=programs / "fixed.pt2")
    with pytest.raises(CheckpointError, match="A state dict is no program"):
        build("torch-file", file=programs / "state.pt")
    (programs / "broken.pt2").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read as an exported program"):
        build("torch-file", file=programs / "broken.pt2")
    with pytest.raises(CheckpointError, match="There is no file"):
        build("torch-file", file=programs / "missing.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sign": "data-minus-noise", "prediction": "noise"}, "output_scale=-1"),
        ({"prediction": "velocity", "schedule": "ddpm"}, "v-prediction"),
        ({"schedule": "ve", "time_direction": "data-at-1"}, "leave time_direction out"),
        ({"output_scale": 0}, "must not be 0"),
        ({"schedule": "ddpm", "prediction": "noise", "schedule_end": 1.5}, "below 1"),
        ({"prediction": "data", "time_low": 0}, "above 0"),
        ({"arguments": ["x"]}, "x and t once each"),
        ({"condition": "labels"}, "num_classes go together"),
    ],
)
def test_options_that_contradict_each_other_are_refused(registry, options, message):
    from freeflow_core.config.load import resolve_choice

    choice = ComponentChoice(name="callable", options={"network": "a:b", "sample_shape": [2], **options})
    with pytest.raises(ConfigError, match=message):
        resolve_choice(registry, "teacher", choice, "teacher")


def test_a_run_distils_from_a_network_of_one_s_own(networks, tmp_path):
    """The exact network of a Gaussian, as noise of a ddpm, distilled by the objective of this project."""
    from freeflow_core import api

    (tmp_path / "exact.py").write_text(
        f"import sys; sys.path.insert(0, {str(__file__.rsplit('/', 1)[0])!r})\n"
        "from networks_support import ExactNetwork\n"
        "net = ExactNetwork('noise', 'ddpm', 'data-at-0', 'noise-minus-data', 1000.0)\n",
        "utf-8",
    )
    teacher = {
        "name": "callable", "network": f"{tmp_path / 'exact.py'}:net", "sample_shape": [2], "arguments": ["x", "t"],
        "prediction": "noise", "schedule": "ddpm",
    }  # fmt: skip
    settings = ["training.images=640", "training.batch_size=64", "evaluation.enabled=false", "codec=states"]
    student = {"name": "mlp", "width": 16}
    overrides = {"name": "own", "teacher": teacher, "student": student, "objective": "freeflow"}
    manager = Manager.load(trust=True)
    config = api.resolve_config("distill", overrides=overrides, settings=settings, manager=manager)
    for processes in (1, 2):  # of one by its step, of several without memory
        assert api.plan(config, num_processes=processes, manager=manager).peak > 0
    result = api.distill(config, output=tmp_path / "run", manager=manager)
    assert result.status == "finished"
    with pytest.raises(ConfigError, match="--trust"):
        api.distill(config, output=tmp_path / "again", manager=Manager.load())
