"""The student wrapped: the teacher's own network, at first the teacher itself; with adapters, on its very weights."""

import copy

import pytest
import torch
from freeflow_networks.config import WrappedStudentConfig
from freeflow_networks.time_path import follow_time
from freeflow_networks.wrapped import WrappedStudent
from networks_support import MLP as PlainMLP
from run_helpers import TINY, TINY_SIT
from torch import nn

from freeflow_core import api
from freeflow_core.config import ComponentChoice
from freeflow_core.engine.build import Builder
from freeflow_core.engine.run import Run
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.evaluation.scoring import Scoring
from freeflow_core.evaluation.student_file import load_student
from freeflow_core.plugin import Manager, Registry

CPU = torch.device("cpu")
UNET = {
    "name": "callable", "network": "networks_support:seeded", "options": {"name": "unet"}, "sample_shape": [1, 8, 8],
    "condition": "labels", "num_classes": 10, "null_label": 10,
}  # fmt: skip
MLP = {
    "name": "callable", "network": "networks_support:seeded", "options": {"name": "mlp"}, "sample_shape": [2],
    "arguments": ["x", "t"], "time_direction": "data-at-1",
}  # fmt: skip
MANY = MLP | {"options": {"name": "many"}}
LORA = {"lora_rank": 2}


@pytest.fixture(scope="module")
def registry():
    return Registry(Manager.load(trust=True))


@pytest.fixture
def build(registry):
    def make(teacher, **options):
        builder = Builder(registry, CPU, 0)
        built = builder.teacher(ComponentChoice.model_validate(teacher))
        return built, builder.build("student", ComponentChoice(name="wrapped", options=options), teacher=built)

    return make


def asked(teacher, num=4):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(num, *teacher.sample_shape, generator=generator)
    t = torch.tensor([0.2, 0.5, 0.8, 1.0])
    labels = None if teacher.num_classes is None else torch.arange(num)
    return x, t, t / 2, labels, 1 + t


def learn(student):
    """Weights as after training: every one that is trained has moved."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return student


@pytest.mark.parametrize(
    ("teacher", "options", "places"),
    [
        (UNET, {}, ["time_embed"]),
        (UNET, LORA, ["time_embed"]),
        (UNET | {"schedule": "vp", "prediction": "data"}, {}, ["time_embed"]),
        (UNET | {"time_scale": 1000, "time_type": "int"}, {}, ["time_embed"]),
        (UNET, {"time_embedding": "middle.time"}, ["middle.time"]),
        (UNET, {"add_to": ["down.conv", "up.conv"]}, ["down.conv", "up.conv"]),
        (MLP, {}, ["net.0"]),
        (MANY, {}, ["times.0", "times.1", "times.2"]),
        (TINY_SIT, {}, ["t_embedder"]),
        (TINY_SIT, LORA, ["t_embedder"]),
        ({"name": "autoguidance", "main": TINY_SIT, "guide": TINY_SIT}, {}, ["t_embedder"]),
    ],
)
def test_it_starts_as_its_teacher_and_learns_about_the_jump(build, teacher, options, places):
    teacher, student = build(teacher, **options)
    assert [place.path for place in student.jump_embedding.places] == places
    x, t, s, labels, weight = asked(teacher)
    velocity = teacher.velocity(x, t, labels)
    assert velocity.std() > 1e-3
    assert torch.equal(student(x, t, t, labels, torch.ones(4)), velocity)  # d = 0 at weight 1
    assert torch.equal(student(x, t, s, labels, weight), velocity)
    student(x, t, s, labels, weight).square().mean().backward()
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    learn(student.eval())
    one, other = student(x, t, s, labels, None), student(x, t, 0 * s, labels, None)
    assert (one - other).abs().max() > 1e-3
    assert (student(x, t, s, labels, weight) - one).abs().max() > 1e-3
    assert torch.equal(teacher.velocity(x, t, labels), velocity)
    report = student.load_teacher(teacher)
    assert any("jump_embedding" in name for name in report.new)
    assert not any("jump_embedding" in name for name in report.taken)


def test_statistics_stay_the_teacher_s_in_training(build):
    _, student = build(UNET)
    x, t, s, labels, weight = asked(student)
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    learn(student).train()
    together = student(x, t, s, labels, weight)
    assert torch.equal(together, student(x, t, s, labels, weight))  # no dropout
    alone = student(x[:1], t[:1], s[:1], labels[:1], weight[:1])
    assert torch.allclose(together[:1], alone, atol=1e-6)
    assert all(torch.equal(buffer, before[name]) for name, buffer in student.named_buffers())


def test_what_no_answer_depends_on_is_not_trained(build):
    _, student = build(MANY)
    frozen = [name for name, p in student.named_parameters() if not p.requires_grad]
    assert len(frozen) == 2
    assert all(".unused." in name for name in frozen)
    assert not any(p.requires_grad for p in copy.deepcopy(student).requires_grad_(False).parameters())


def test_derivatives_in_the_jump_agree_with_differences(build):
    _, student = build(UNET)
    learn(student.double())
    x, t, s, labels, weight = asked(student)
    x, t, s = x.double(), t.double(), s.double()

    def jump(s):
        return student(x, t, s, labels, weight.double())

    with torch.no_grad():
        exact = torch.func.jvp(jump, (s,), (torch.ones_like(s),))[1]
        central = (jump(s + 1e-6) - jump(s - 1e-6)) / 2e-6
    assert (exact - central).abs().max() < 1e-5 * exact.abs().max()


def test_adapters_share_the_teacher_s_weights_and_merge(build, registry, tmp_path):
    teacher, student = build(TINY_SIT, **LORA)
    shared = {id(p) for p in teacher.parameters()}
    held = [p for p in student.parameters() if id(p) in shared]
    assert len(held) == len(shared)
    fake = copy.deepcopy(student)  # as an objective makes a fake velocity, and the engine an average
    assert sum(id(p) in shared for p in fake.parameters()) == len(shared)
    learn(student)
    x, t, s, labels, weight = asked(teacher)
    assert torch.equal(fake(x, t, s, labels, weight), teacher.velocity(x, t, labels))
    with torch.no_grad():
        jumped = student(x, t, s, labels, weight)
    assert not any("base_layer" in name or "pos_embed" in name for name in student.state_dict())
    student.export(tmp_path / "merged.safetensors")
    from safetensors.torch import load_file

    merged = load_file(tmp_path / "merged.safetensors")
    names = {name for name in merged if not name.startswith("jump_embedding.")}
    assert names == set(teacher.own_network.state_dict())
    _, full = build(TINY_SIT)
    full.wrapped.own_network.load_state_dict({name: merged[name] for name in names})
    full.jump_embedding.load_state_dict(student.jump_embedding.state_dict())
    with torch.no_grad():
        assert torch.allclose(full(x, t, s, labels, weight), jumped, atol=1e-5)


@pytest.mark.parametrize("options", [{}, LORA])
def test_a_run_is_planned_trained_resumed_sampled_and_exported(registry, tmp_path, options):
    manager = registry.manager
    overrides = TINY | {
        "teacher": UNET, "student": {"name": "wrapped", "width": 16} | options, "name": "tiny",
        "training": {"images": 96, "batch_size": 16, "optimizer": {"learning_rate": 1e-2}},
        "trackers": [],
    }  # fmt: skip
    config = api.resolve_config("distill", manager=manager, overrides=overrides)
    for processes in (2, 1):  # of several without memory, of one by its step
        plan = api.plan(config, num_processes=processes, manager=manager)
        assert plan.extrapolated_from is None
    own = sum(p.numel() * 4 for p in build_student(registry, config).parameters() if p.requires_grad)
    for role in ("student", "fake_velocity"):
        assert plan.network(role).gradients == own
        assert plan.network(role).optimizer == 2 * own + 4
        if options:
            assert plan.network(role).weights == own  # the rest is the teacher's
    whole = Run(config, "distill", manager, output=tmp_path / "whole", resume=False, scorer=Scoring)
    base = [p.clone() for p in whole.components.teacher.parameters()]
    whole.execute()
    assert all(map(torch.equal, base, whole.components.teacher.parameters()))
    api.distill(config, settings=["training.stop_at_images=48"], output=tmp_path / "half", manager=manager)
    api.distill(config, output=tmp_path / "half", resume=True, manager=manager)
    first, again = (load_student(tmp_path / name, registry).student.requires_grad_(False) for name in ("whole", "half"))
    x, t, s, labels, weight = asked(first)
    ema = whole.state.roles["student"].ema
    jumped = ema.flow_map(x, t, s, labels, weight)
    assert torch.equal(first.flow_map(x, t, s, labels, weight), jumped)
    assert torch.equal(again.flow_map(x, t, s, labels, weight), jumped)
    assert not torch.equal(jumped, x - (t - s)[:, None, None, None] * whole.components.teacher.velocity(x, t, labels))
    api.export(tmp_path / "whole", tmp_path / "student.pt", manager=manager)
    assert set(torch.load(tmp_path / "student.pt", weights_only=True)) > set(first.wrapped.own_network.state_dict()) - {
        name for name in first.wrapped.own_network.state_dict() if "lora_" in name or "base_layer" in name
    }
    api.export(tmp_path / "whole", tmp_path / "student.pth", manager=manager)
    with pytest.raises(ConfigError, match="--trust"):
        load_student(tmp_path / "whole", Registry(Manager.load()))


def build_student(registry, config):
    builder = Builder(registry, CPU, 0)
    return builder.build("student", config.student, teacher=builder.teacher(config.teacher))


def test_recomputed_blocks_change_no_gradient(build):
    found = []
    for recomputed in (False, True):
        _, student = build(TINY_SIT)
        if recomputed:
            student.enable_activation_checkpointing()
            student = copy.deepcopy(student)
        learn(student)
        student(*asked(student)).square().mean().backward()
        found.append([p.grad for p in student.parameters() if p.requires_grad])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(plain, recomputed)
    with pytest.raises(ConfigError, match="activation_checkpointing=false"):
        build(MLP)[1].enable_activation_checkpointing()


class OutsideOfModules(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x, t):
        return x * self.weight + t[:, None]


def test_computed_weights_are_not_adapted(build, tmp_path):
    teacher, _ = build(MLP)
    nn.utils.parametrizations.weight_norm(teacher.own_network.net[0])
    student = WrappedStudent(teacher.student_copy(share_weights=True), WrappedStudentConfig(lora_rank=2))
    learn(student)
    student.export(tmp_path / "merged.pt")
    names = set(torch.load(tmp_path / "merged.pt", weights_only=True))
    assert names > set(teacher.own_network.state_dict())
    assert any("parametrizations" in name for name in names)


def test_what_cannot_be_wrapped_is_refused(build, registry, tmp_path):
    with pytest.raises(ConfigError, match="no weights of its own"):
        build({"name": "gaussian-mixture"})
    with pytest.raises(ConfigError, match="no weights of its own"):
        build(MLP | {"network": "networks_support:ExactNetwork", "options": {}})
    torch.jit.script(PlainMLP()).save(str(tmp_path / "program.pt"))
    with pytest.raises(ConfigError, match=r"is a saved program.*as the teacher `callable`"):
        build({"name": "torch-file", "file": str(tmp_path / "program.pt"), "sample_shape": [2]})
    with pytest.raises(ConfigError, match=r"no module 'time_embd'.*'time_embed'"):
        build(UNET, time_embedding="time_embd")
    with pytest.raises(ConfigError, match="'labels' of the teacher's network gives no tensor"):
        build(UNET, time_embedding="labels")
    with pytest.raises(ConfigError, match="exclude each other"):
        build(UNET, time_embedding="time_embed", add_to=["up"])
    with pytest.raises(ConfigError, match=r"matches none of the .* layers"):
        build(UNET, lora_rank=2, lora_modules="nothing")
    with pytest.raises(ConfigError, match="no regular expression"):
        build(UNET, lora_rank=2, lora_modules="(")
    with pytest.raises(ConfigError, match="this run has no teacher"):
        Builder(registry, CPU, 0).build("student", ComponentChoice(name="wrapped"))
    network = OutsideOfModules()
    with pytest.raises(ConfigError, match="embeds the time outside of torch modules"):
        follow_time(network, network, torch.zeros(2, 2), torch.zeros(2))
    _, student = build(UNET)
    other, _ = build(MLP)
    with pytest.raises(ConfigError, match="wraps another network"):
        student.load_teacher(other)
    with pytest.raises(CheckpointError, match="rebuilt with its teacher"):
        type(student).from_state(student.network_state())
