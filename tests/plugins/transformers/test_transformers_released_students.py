"""Published FreeFlow students: as students here, and our students in their format."""

import importlib.resources

import pytest
import torch
from freeflow_transformers.config import (
    FlowMapTransformerConfig,
    FreeFlow256Config,
    FreeFlow512Config,
    FreeFlowSiT256Config,
    FreeFlowStudentConfig,
    SiTRepaTeacherConfig,
    SiTTeacherConfig,
)
from freeflow_transformers.released.formats import export_released, released_family, released_state_dict
from freeflow_transformers.released.loading import released_student
from freeflow_transformers.students import FlowMapTransformer, VelocityTransformer
from freeflow_transformers.teachers import DIGITS_ASSET, TransformerTeacher
from pydantic import ValidationError
from safetensors.torch import load_file

from freeflow_core.config import ComponentChoice
from freeflow_core.engine.build import Builder
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import StartTimes
from freeflow_core.network_file import load_network, save_network
from freeflow_core.types import Guidance, NetworkState

LABELS = torch.tensor([3, 0, 9])
ONE = torch.ones(3, dtype=torch.float64)
PUBLISHED = [FreeFlow256Config, FreeFlowSiT256Config, FreeFlow512Config]


def load(context, config=FreeFlowStudentConfig, **options):
    return FlowMapTransformer.from_config(config(**options), context)


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def jump(student, z, labels, weight):
    return student.flow_map(z, ONE, 0 * ONE, labels, weight * ONE)


@torch.no_grad()
def test_the_raw_output_is_the_published_one(golden, make_context):
    io = load_file(golden / "a-freeflow-io.safetensors")
    student = load(make_context(), checkpoint=golden / "a-freeflow.pt", num_heads=4)
    t = 1 - io["t"].double()  # its own time runs from noise to data
    s = t - io["dt"].double()
    output = student(io["x"], t, s, io["y"], io["gw"])
    torch.testing.assert_close(output, io["out"], rtol=0, atol=1e-5)
    torch.testing.assert_close(student.average_velocity(output, io["x"], t, s), -io["out"][:, :4], rtol=0, atol=1e-5)
    assert student.start_times is StartTimes.PRIOR
    assert str(golden / "a-freeflow.pt") in student.provenance


@pytest.mark.parametrize(("family", "own_time", "direction"), [("sit", 0.0, 1.0), ("sit-repa", 1.0, -1.0)])
@pytest.mark.parametrize("weight", [1.0, 3.5])
@torch.no_grad()
def test_one_step_is_the_published_formula(
    write_checkpoint, make_context, make_network, registry, states, family, own_time, direction, weight
):
    """z + f(z, 0, 1, w) in SiT's convention, z - f(z, 1, 1, w) in REPA's: the authors' sample.py."""
    path, z = write_checkpoint("freeflow-512"), states(3, (4, 8, 8))
    student = load(make_context(), checkpoint=path, num_heads=3, family=family)
    network = make_network(sample_shape=(4, 8, 8), num_classes=10, jump=True, guidance=True)
    expected = z + direction * network(z, own_time * ONE, LABELS, ONE, weight * ONE)
    sampler = Builder(registry, torch.device("cpu"), 0).build("sampler", ComponentChoice(name="one-step"))
    samples = sampler.sample(student, z, torch.tensor([1.0, 0.0]).double(), LABELS, Guidance(weight * ONE))
    assert torch.equal(samples.x, expected)
    assert samples.num_evaluations == 1


@torch.no_grad()
def test_two_times_the_channels_are_sits(write_checkpoint, make_context, states):
    path, z = write_checkpoint("freeflow"), states(3, (4, 8, 8))
    student = load(make_context(), checkpoint=path, num_heads=3)
    assert (student.network.config.time_direction, student.network.config.sign) == ("data-at-1", "data-minus-noise")
    raw = student.network(z, 0 * ONE, LABELS, ONE, 2 * ONE)
    assert raw.shape == (3, 8, 8, 8)
    assert torch.equal(jump(student, z, LABELS, 2.0), z + raw[:, :4])
    with pytest.raises(
        CheckpointError, match=r"cannot be the student of a sit-repa teacher.*\(32, 24\), not \(16, 24\)"
    ):
        load(make_context(), checkpoint=path, num_heads=3, family="sit-repa")


def test_a_family_that_cannot_be_seen_must_be_named(write_checkpoint, make_context):
    path = write_checkpoint("freeflow-512", "REPA.pt")
    with pytest.raises(ConfigError, match=r"fits students of sit and of sit-repa.*the option family"):
        load(make_context(), checkpoint=path, num_heads=3)
    conventions = [
        load(make_context(), config, checkpoint=path, num_heads=3).network.config.time_direction for config in PUBLISHED
    ]
    assert conventions == ["data-at-0", "data-at-1", "data-at-1"]
    with pytest.raises(ValidationError, match="checkpoint"):
        FreeFlowStudentConfig()


@pytest.mark.parametrize("config", PUBLISHED)
def test_without_a_checkpoint_the_published_weights_are_fetched(write_checkpoint, make_context, config):
    asked = []
    path = write_checkpoint("freeflow-512")

    def weights(name):
        asked.append(name)
        return path

    student = load(make_context(weights=weights), config, num_heads=3)
    assert asked == [config.published]
    assert student.num_classes == 10


def test_every_published_student_has_its_weights(registry):
    published = {name for name in registry.components("student") if name.startswith("freeflow-")}
    assert len(published) == len(PUBLISHED)
    for name in published:
        assert registry.component("student", name).load_config_class().published == name
        assert name in registry.weights()


@pytest.mark.parametrize("config", PUBLISHED)
def test_a_plan_fetches_and_reads_nothing(make_context, write_checkpoint, config):
    context = make_context(device="meta")
    student = load(context, config)
    assert all(parameter.is_meta for parameter in student.parameters())
    assert student.sample_shape == ((4, 64, 64) if config is FreeFlow512Config else (4, 32, 32))
    assert student.network.config.size == "XL"
    assert student.network.config.learn_sigma == (config is FreeFlowSiT256Config)
    local = load(context, config, checkpoint=write_checkpoint("freeflow-512"), num_heads=3)
    assert local.network.config.depth == 2
    assert all(parameter.is_meta for parameter in local.parameters())


def test_files_that_are_no_published_student(write_checkpoint, released_tensors, make_network, make_context, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"no published FreeFlow student: missing: .*It is a checkpoint of the teacher sit"
    ):
        load(make_context(), checkpoint=write_checkpoint("sit"), num_heads=3)
    lacking = {n: t for n, t in released_tensors("freeflow").items() if not n.startswith("gw_embedder")}
    with pytest.raises(CheckpointError, match=r"missing: gw_embedder\.projs\.0\.bias"):
        released_student(shapes_of(lacking), tmp_path / "x.pt", num_heads=3)
    unnamed = {n.replace(".projs.", ".mlp."): t for n, t in released_tensors("freeflow").items()}
    with pytest.raises(CheckpointError, match=r"missing: dt_embedder\.projs.*unexpected: dt_embedder\.mlp"):
        released_student(shapes_of(unnamed), tmp_path / "x.pt", num_heads=3)
    own = FlowMapTransformer(make_network(jump=True, guidance=True))
    save_network(tmp_path / "own.safetensors", own.network_state(), {})
    with pytest.raises(CheckpointError, match=r"was written by this project.*--student"):
        load(make_context(), checkpoint=tmp_path / "own.safetensors")


@pytest.fixture(params=["sit", "sit-512", "sit-repa"])
def trained(request, write_checkpoint, make_context):
    """A student that started from a published teacher and moved on."""
    config = SiTRepaTeacherConfig if request.param == "sit-repa" else SiTTeacherConfig
    context = make_context()
    teacher = TransformerTeacher.from_config(config(checkpoint=write_checkpoint(request.param), num_heads=3), context)
    student = FlowMapTransformer.from_config(FlowMapTransformerConfig(), make_context(teacher))
    student.load_teacher(teacher)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return student


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@torch.no_grad()
def test_a_student_comes_back_from_the_published_format(trained, make_context, states, tmp_path, suffix):
    path = tmp_path / "folder" / f"student{suffix}"
    family = released_family(trained.network_state())
    assert family in trained.export(path)
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]
    options = (
        {} if suffix == ".safetensors" else {"num_heads": 3, "family": family}
    )  # what a bare state dict leaves out
    back = load(make_context(), checkpoint=path, **options)
    assert back.network.config == trained.network.config
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())
    z = states(3, (4, 8, 8))
    assert torch.equal(jump(back, z, LABELS, 2.0), jump(trained, z, LABELS, 2.0))


def test_a_published_student_exports_to_the_bytes_it_came_from(golden, make_context, tmp_path):
    student = load(make_context(), checkpoint=golden / "a-freeflow.pt", num_heads=4)
    tensors = released_state_dict(student.network_state())
    original = torch.load(golden / "a-freeflow.pt", weights_only=True)
    assert tensors.keys() == original.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in original.items())


@torch.no_grad()
def test_a_velocity_network_exports_as_a_teacher(make_network, make_context, states, tmp_path):
    student = VelocityTransformer(make_network(sample_shape=(4, 8, 8), num_classes=10))
    assert "velocity network with the convention of sit-repa" in student.export(tmp_path / "x.pt")
    config = SiTRepaTeacherConfig(checkpoint=tmp_path / "x.pt", num_heads=3)
    teacher = TransformerTeacher.from_config(config, make_context())
    x, t = states(3, (4, 8, 8)), torch.tensor([1.0, 0.5, 0.1])
    assert torch.equal(
        teacher.velocity(x, t, LABELS), student.average_velocity(student(x, t, t, LABELS, None), x, t, t)
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"jump": True}, "takes a duration but no guidance weight.*student.guidance=true"),
        ({"jump": True, "guidance": True, "null_class": False}, "no null class"),
        ({"jump": True, "guidance": True, "sample_shape": (4, 8, 4)}, "8 x 4 are not square"),
        ({"prediction": "noise"}, "predicts the noise"),
        ({"time_direction": "data-at-1"}, "No published family has time data-at-1, velocity noise-minus-data"),
    ],
)
def test_networks_the_format_cannot_hold(make_network, tmp_path, options, problem):
    network = make_network(**{"sample_shape": (4, 8, 8), **options})
    state = NetworkState("diffusion-transformer", network.config.model_dump(), network.state_dict())
    with pytest.raises(ConfigError, match=problem):
        export_released(state, tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


def test_exports_that_cannot_be_written(trained, tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.safetensors or \.pt"):
        trained.export(tmp_path / "x.bin")
    (tmp_path / "file").write_text("")
    for suffix in (".pt", ".safetensors"):
        with pytest.raises(CheckpointError, match="cannot be written"):
            trained.export(tmp_path / "file" / f"x{suffix}")
    with pytest.raises(ConfigError, match="not a unet"):
        export_released(NetworkState("unet", {}, {}), tmp_path / "x.pt")


def test_a_trained_student_read_as_the_other_familys_is_refused(make_context, tmp_path):
    with importlib.resources.as_file(importlib.resources.files("freeflow_transformers").joinpath(DIGITS_ASSET)) as file:
        state, _ = load_network(file)
    teacher = TransformerTeacher.from_asset()
    student = FlowMapTransformer.from_config(FlowMapTransformerConfig(), make_context(teacher))
    student.load_teacher(teacher)
    student.export(tmp_path / "x.pt")
    options = {"checkpoint": tmp_path / "x.pt", "num_heads": state.config["num_heads"]}
    assert "as its convention says" in load(make_context(), family="sit-repa", **options).provenance
    with pytest.raises(CheckpointError, match="does not follow the convention"):
        load(make_context(), family="sit", **options)
