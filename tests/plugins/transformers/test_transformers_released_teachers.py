"""The teachers `sit` and `sit-repa` from published checkpoints: conventions, options, and what is refused."""

import argparse
import importlib.resources
import re

import pytest
import torch
from freeflow_transformers.config import (
    DiTTeacherConfig,
    FlowMapTransformerConfig,
    ReleasedTeacherConfig,
    SiTRepaTeacherConfig,
    SiTTeacherConfig,
    VelocityTransformerConfig,
)
from freeflow_transformers.network import position_embedding
from freeflow_transformers.released.families import PUBLISHED
from freeflow_transformers.students import FlowMapTransformer, VelocityTransformer
from freeflow_transformers.teachers import DIGITS_ASSET, NoiseTeacher, TransformerTeacher
from pydantic import ValidationError
from safetensors.torch import load_file

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.network_file import load_network, save_network

T = torch.tensor([1.0, 0.7, 0.2], dtype=torch.float64)
LABELS = torch.tensor([3, 0, 10])
CONFIGS: dict[str, type[ReleasedTeacherConfig]] = {
    "sit": SiTTeacherConfig,
    "sit-repa": SiTRepaTeacherConfig,
    "dit": DiTTeacherConfig,
}


def build(name, context, **options):
    config = CONFIGS[name](**options)
    target = NoiseTeacher if name == "dit" else TransformerTeacher
    return target.from_config(config, context)


@pytest.fixture
def teacher_of(make_context):
    def make(name, path, **options):
        return build(name, make_context(), checkpoint=path, num_heads=3, **options)

    return make


@torch.no_grad()
def test_sit_answers_as_the_family(golden, make_context):
    io = load_file(golden / "a-sit-io.safetensors")
    teacher = build("sit", make_context(), checkpoint=golden / "a-sit.pt", num_heads=4)
    t = 1 - io["t"].double()  # its own time runs from noise to data
    conditional = teacher.velocity(io["x"], t, io["y"])
    torch.testing.assert_close(-conditional, io["out"], rtol=0, atol=1e-5)
    null = teacher.null_condition(io["y"])
    torch.testing.assert_close(-teacher.velocity(io["x"], t, null), io["out_null"], rtol=0, atol=1e-5)
    assert teacher.guidance_channels == 3
    weight = torch.full((5,), float(io["cfg_scale"]), dtype=torch.float64)
    guided = teacher.guided_velocity(io["x"], t, io["y"], weight)
    torch.testing.assert_close(-guided, io["out_cfg"], rtol=0, atol=1e-5)


def test_positions_are_the_stored_ones(golden):
    stored = torch.load(golden / "a-sit.pt", weights_only=True)["pos_embed"]
    torch.testing.assert_close(position_embedding(4, 4, 48), stored, rtol=0, atol=1e-7)


@torch.no_grad()
def test_repa_answers_as_the_family(golden, make_context):
    io = load_file(golden / "a-repa-io.safetensors")
    teacher = build("sit-repa", make_context(), checkpoint=golden / "a-repa.pt", num_heads=4)
    torch.testing.assert_close(teacher.velocity(io["x"], io["t"], io["y"]), io["out"], rtol=0, atol=1e-5)
    null = teacher.null_condition(io["y"])
    torch.testing.assert_close(teacher.velocity(io["x"], io["t"], null), io["out_null"], rtol=0, atol=1e-5)
    assert teacher.guidance_channels is None
    assert "projectors" in teacher.provenance


@pytest.mark.parametrize(
    ("file", "chosen", "difference"),
    [
        ("sit", "sit-repa", r"final_layer\.linear\.weight is \(32, 48\), not \(16, 48\)"),
        (
            "repa",
            "sit",
            r"unexpected: projectors\.0\.0\.bias, projectors\.0\.0\.weight.* those of the teacher sit-repa",
        ),
        ("freeflow", "sit", r"t_embedder\.mlp\.0\.weight.*unexpected: dt_embedder\.projs.*FreeFlow students"),
    ],
)
def test_golden_files_of_another_family_are_refused(golden, make_context, file, chosen, difference):
    with pytest.raises(CheckpointError, match=f"is not of the family '{chosen}'.*{difference}"):
        build(chosen, make_context(), checkpoint=golden / f"a-{file}.pt", num_heads=4)


@torch.no_grad()
def test_conventions_are_options_with_the_familys_default(write_checkpoint, teacher_of, states):
    path, x = write_checkpoint("sit"), states(3, (4, 8, 8))
    teacher = teacher_of("sit", path)
    raw = teacher.network(x, 1 - T, LABELS)[:, :4]
    assert torch.equal(teacher.velocity(x, T, LABELS), -raw)
    assert "time data-at-1, velocity data-minus-noise, guidance on the first 3 channels" in teacher.provenance
    turned = teacher_of("sit", path, sign="noise-minus-data", guidance_channels="all")
    assert torch.equal(turned.velocity(x, T, LABELS), raw)
    assert turned.guidance_channels is None
    forward = teacher_of("sit", path, time_direction="data-at-0", guidance_channels=2)
    assert torch.equal(forward.velocity(x, T, LABELS), -teacher.network(x, T, LABELS)[:, :4])
    assert forward.guidance_channels == 2
    repa = teacher_of("sit-repa", write_checkpoint("sit-repa"))
    assert torch.equal(repa.velocity(x, T, LABELS), repa.network(x, T, LABELS))


@pytest.mark.parametrize("weights", ["ema", "model"])
@torch.no_grad()
def test_the_weights_asked_for_are_those_loaded_in_float32(released_tensors, teacher_of, tmp_path, weights):
    asked, other = released_tensors("sit-repa"), released_tensors("sit-repa", seed=1)
    both = {"ema": other, "model": other, weights: {name: tensor.half() for name, tensor in asked.items()}}
    torch.save({**both, "opt": {}, "args": argparse.Namespace(lr=1e-4), "steps": 3}, tmp_path / "weights")
    loaded = teacher_of("sit-repa", tmp_path / "weights", weights=weights).network.state_dict()
    for name, tensor in loaded.items():
        torch.testing.assert_close(tensor, asked[name], rtol=0, atol=1e-3)
        assert tensor.dtype is torch.float32


def test_a_loaded_teacher_does_not_depend_on_its_file(write_checkpoint, teacher_of, states):
    path = write_checkpoint("sit")
    teacher = teacher_of("sit", path)
    before = teacher.velocity(states(3, (4, 8, 8)), T, LABELS)
    path.write_bytes(b"\0" * path.stat().st_size)  # the reader maps files; the network must own its memory
    assert torch.equal(teacher.velocity(states(3, (4, 8, 8)), T, LABELS), before)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_options_about_the_architecture_are_checked(write_checkpoint, teacher_of, make_context):
    path = write_checkpoint("sit")
    assert teacher_of("sit", path, patch_size=2, num_classes=10).num_classes == 10
    for options, problem in (
        ({"patch_size": 4}, "patch_size 2, not 4"),
        ({"num_classes": 1000}, "num_classes 10, not 1000"),
        ({"resolution": 512}, "latents for 64 pixels, not 512"),
        ({"depth": 3, "width": 24}, "depth 2, not 3"),
    ):
        with pytest.raises(ConfigError, match=problem):
            teacher_of("sit", path, **options)
    with pytest.raises(ConfigError, match=r"none of the sizes S, B, L, XL. Set the option num_heads"):
        build("sit", make_context(), checkpoint=path)
    named = {"size": "S", "checkpoint": write_checkpoint("sit", "norm.pt", qk_norm=True)}
    with pytest.raises(ConfigError, match=r"depth 2, not 12; width 24, not 384"):
        build("sit", make_context(), **named)


def test_options_that_exclude_each_other(tmp_path):
    for options, problem in (
        ({"size": "S", "depth": 3, "width": 48}, "size=S already sets depth, width"),
        ({"depth": 3}, "needs both depth and width"),
        ({"initialise": "random", "checkpoint": tmp_path / "x"}, "uses no checkpoint"),
    ):
        with pytest.raises(ValidationError, match=problem):
            SiTTeacherConfig(**options)


@pytest.mark.parametrize(
    ("teacher", "options", "name"),
    [
        ("sit", {}, "sit-xl-2-256"),
        ("sit", {"size": "B"}, "sit-b-2-256"),
        ("sit-repa", {"resolution": 512}, "sit-repa-xl-2-512"),
        ("dit", {"resolution": 512, "size": "XL"}, "dit-xl-2-512"),
    ],
)
def test_without_a_checkpoint_the_published_weights_are_fetched(make_context, teacher, options, name):
    asked = []

    class Fetched(Exception):
        pass

    def weights(name):
        asked.append(name)
        raise Fetched

    with pytest.raises(Fetched):
        build(teacher, make_context(weights=weights), **options)
    assert asked == [name]
    assert name in {file.name for file in PUBLISHED}


@pytest.mark.parametrize(("teacher", "options"), [("sit", {"patch_size": 4}), ("dit", {"depth": 3, "width": 48})])
def test_sizes_without_published_weights(make_context, teacher, options):
    with pytest.raises(ConfigError, match="no published weights for"):
        build(teacher, make_context(), **options)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("freeflow-xl-2-256", "FreeFlow_SiT_REPA_256.pt"),
        ("freeflow-sit-xl-2-256", "FreeFlow_SiT_256.pt"),
        ("freeflow-sit-xl-2-256", "sit/xl-256.pt"),
        ("sit-xl-2-512", "SiT-XL-2-512.pt"),
    ],
)
def test_a_pattern_finds_its_own_file_and_not_its_neighbours(name, path):
    found = [file.name for file in PUBLISHED if file.pattern and re.search(file.pattern, path, re.IGNORECASE)]
    assert found == [name]


@pytest.mark.parametrize("teacher", list(CONFIGS))
def test_a_plan_fetches_and_reads_nothing(make_context, teacher):
    """The context's `weights` fails the test when it is called."""
    context = make_context(device="meta")
    planned = build(teacher, context)
    assert all(parameter.is_meta for parameter in planned.parameters())
    assert sum(p.numel() for p in planned.parameters()) > 670e6
    assert build(teacher, context, size="XL", resolution=512).sample_shape == (4, 64, 64)
    assert build(teacher, context, initialise="random", size="B").network.config.size == "B"
    unpublished = build(teacher, context, size="B", patch_size=4)
    assert (unpublished.network.config.size, unpublished.network.config.patch_size) == ("B", 4)


@torch.no_grad()
def test_a_pretrained_file_keeps_what_it_says_of_itself(make_network, make_context, states, tmp_path):
    path = tmp_path / "own.safetensors"
    network = make_network(time_direction="data-at-1", sign="data-minus-noise")
    save_network(path, VelocityTransformer(network).network_state(), {})
    teacher = build("sit", make_context(), checkpoint=path)
    x, labels = states(3), torch.tensor([0, 4, 5])
    assert torch.equal(teacher.velocity(x, T, labels), -network(x, 1 - T, labels))
    assert teacher.guidance_channels is None
    assert "written by freeflow" in teacher.provenance
    with pytest.raises(ConfigError, match="time_direction data-at-1, not data-at-0"):
        build("sit", make_context(), checkpoint=path, time_direction="data-at-0")
    with pytest.raises(ConfigError, match="depth 2, not 12"):
        build("sit", make_context(), checkpoint=path, size="B")
    with pytest.raises(CheckpointError, match="Use it as the teacher `sit`"):
        build("sit-repa", make_context(), checkpoint=path)


def test_files_from_before_conventions_were_stored(make_network, make_context, tmp_path):
    state = VelocityTransformer(make_network()).network_state()
    config = {k: v for k, v in state.config.items() if k not in ("time_direction", "sign", "prediction")}
    save_network(tmp_path / "old.safetensors", type(state)(state.family, config, state.tensors), {})
    architecture = build("sit", make_context(), checkpoint=tmp_path / "old.safetensors").network.config
    assert (architecture.time_direction, architecture.sign) == ("data-at-0", "noise-minus-data")
    assert architecture.prediction == "velocity"


@pytest.mark.parametrize("family", ["sit", "sit-512", "sit-repa"])
@torch.no_grad()
def test_a_student_answers_as_its_teacher_and_keeps_its_convention(
    write_checkpoint, teacher_of, make_context, states, family
):
    teacher = teacher_of(family.removesuffix("-512"), write_checkpoint(family))
    context, x = make_context(teacher), states(3, (4, 8, 8))
    student = FlowMapTransformer.from_config(FlowMapTransformerConfig(), context)
    report = student.load_teacher(teacher)
    assert not report.left
    for s, weight in ((0.0, 1.0), (0.1, 4.0)):
        end, guidance = torch.full_like(T, s), torch.full_like(T, weight)
        u = student.average_velocity(student(x, T, end, LABELS, guidance), x, T, end)
        assert torch.equal(u, teacher.velocity(x, T, LABELS))
    assert student.network.config.out_channels == (8 if family == "sit" else 4)
    back = FlowMapTransformer.from_state(student.network_state())
    again = back.average_velocity(back(x, T, 0 * T, LABELS, None), x, T, 0 * T)
    assert torch.equal(again, teacher.velocity(x, T, LABELS))
    velocity = VelocityTransformer.from_config(VelocityTransformerConfig(), context)
    velocity.load_teacher(teacher)
    assert torch.equal(
        velocity.average_velocity(velocity(x, T, T, LABELS, None), x, T, T), teacher.velocity(x, T, LABELS)
    )


def test_no_student_starts_from_a_noise_predicting_teacher(write_checkpoint, teacher_of, make_context, states):
    teacher = teacher_of("dit", write_checkpoint("dit"))
    with pytest.raises(ConfigError, match=r"predicts the noise.*158 times.*student\.initialise=random"):
        FlowMapTransformer.from_config(FlowMapTransformerConfig(), make_context(teacher))
    student = FlowMapTransformer.from_config(FlowMapTransformerConfig(initialise="random"), make_context(teacher))
    assert student.load_teacher(teacher).taken == ()
    architecture = student.network.config
    assert (architecture.depth, architecture.width, architecture.num_classes) == (2, 24, 10)
    assert (architecture.prediction, architecture.out_channels) == ("velocity", 4)
    with pytest.raises(ConfigError, match="predicts the noise"):
        FlowMapTransformer(student.network).load_teacher(teacher)


@torch.no_grad()
def test_a_trained_network_read_with_the_opposite_convention_is_refused(make_context, tmp_path):
    """The shipped digits teacher, stripped of what it says of itself: time from data to noise, noise - data."""
    with importlib.resources.as_file(importlib.resources.files("freeflow_transformers").joinpath(DIGITS_ASSET)) as file:
        state, _ = load_network(file)
    torch.save(dict(state.tensors), tmp_path / "digits.pt")
    options = {"checkpoint": tmp_path / "digits.pt", "num_heads": state.config["num_heads"]}
    teacher = build("sit-repa", make_context(), **options)
    assert "as its convention says" in teacher.provenance
    assert teacher.network.config.num_classes == 10
    with pytest.raises(CheckpointError, match=r"does not follow the convention .*time data-at-1.*the opposite way"):
        build("sit", make_context(), **options)
    mended = build("sit", make_context(), time_direction="data-at-0", sign="noise-minus-data", **options)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t, labels = torch.tensor([1.0, 0.5]), torch.tensor([1, 2])
    assert torch.equal(mended.velocity(x, t, labels), teacher.velocity(x, t, labels))
