from dataclasses import replace

import pytest
import torch
from freeflow_transformers.config import FlowMapTransformerConfig, VelocityTransformerConfig
from freeflow_transformers.students import FlowMapTransformer, VelocityTransformer
from freeflow_transformers.teachers import TransformerTeacher
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import Source, Teacher
from freeflow_core.testing.exact import GaussianTeacher
from freeflow_core.types import NetworkState

LABELS = torch.tensor([0, 4, 5])
T = torch.tensor([1.0, 0.8, 0.3], dtype=torch.float64)


class ImageSource(Source):
    """Just a shape and a number of classes."""

    def __init__(self, shape, num_classes):
        self.image_shape, self.num_classes = shape, num_classes

    def batches(self, start, batch_size, rank, world_size):
        raise NotImplementedError

    def held_out(self):
        return None


class OtherFamily(Teacher):
    """An image teacher whose network is no transformer."""

    sample_shape = (3, 16, 16)
    num_classes = 7

    def __init__(self, state):
        super().__init__()
        self._state = state

    def velocity(self, x_t, t, condition):
        return x_t

    def network_state(self):
        return self._state


def flow_map(context, **options):
    return FlowMapTransformer.from_config(FlowMapTransformerConfig(**options), context)


def velocity_field(context, **options):
    return VelocityTransformer.from_config(VelocityTransformerConfig(**options), context)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(s=st.floats(0, 0.3), weight=st.floats(0, 9))
@torch.no_grad()
def test_a_student_starts_as_its_teacher_at_every_end_time_and_guidance(teacher, make_context, states, s, weight):
    student = flow_map(make_context(teacher))
    student.load_teacher(teacher)
    x = states(3)
    end, guidance = torch.full_like(T, s), torch.full_like(T, weight)
    u = student.average_velocity(student(x, T, end, LABELS, guidance), x, T, end)
    assert torch.equal(u, teacher.velocity(x, T, LABELS))
    expected = x - (T - end).float().reshape(-1, 1, 1, 1) * u
    torch.testing.assert_close(student.flow_map(x, T, end, LABELS, guidance), expected)


def test_load_report_says_what_was_taken(teacher, make_context):
    student = flow_map(make_context(teacher))
    report = student.load_teacher(teacher)
    assert set(report.taken) == set(teacher.network.state_dict())
    assert set(report.new) == {
        f"{embedder}_embedder.mlp.{layer}.{kind}"
        for embedder in ("dt", "gw")
        for layer in (0, 2)
        for kind in ("weight", "bias")
    }
    assert report.left == ()
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_student_is_like_its_teacher_unless_asked(make_network, make_context):
    network = make_network(learn_sigma=True, qk_norm=True, mlp_ratio=2.0, null_class=False)
    student = flow_map(make_context(TransformerTeacher(network)))
    assert student.network.config == network.config.model_copy(update={"jump": True, "guidance": True})
    assert (student.sample_shape, student.num_classes) == ((2, 4, 6), 5)
    unguided = flow_map(make_context(TransformerTeacher(make_network(num_classes=0))))
    assert not unguided.network.config.guidance
    assert unguided.num_classes is None


@torch.no_grad()
def test_only_the_first_channels_are_the_velocity(make_network, states):
    student = FlowMapTransformer(make_network(jump=True, learn_sigma=True))
    x = states(3)
    out = student(x, T, 0 * T, LABELS, None)
    assert out.shape == (3, 4, 4, 6)
    assert torch.equal(student.average_velocity(out, x, T, 0 * T), out[:, :2])
    velocity = VelocityTransformer(make_network(learn_sigma=True))
    assert velocity.average_velocity(velocity(x, T, T, LABELS, None), x, T, T).shape == x.shape


@torch.no_grad()
def test_no_guidance_means_weight_one(make_network, states):
    student = FlowMapTransformer(make_network(jump=True, guidance=True))
    x, ones = states(3), torch.ones(3)
    assert torch.equal(student(x, T, 0 * T, LABELS, None), student(x, T, 0 * T, LABELS, ones))
    assert not torch.equal(student(x, T, 0 * T, LABELS, None), student(x, T, 0 * T, LABELS, 2 * ones))
    without = FlowMapTransformer(make_network(jump=True))
    assert torch.equal(without(x, T, 0 * T, LABELS, None), without(x, T, 0 * T, LABELS, 2 * ones))


@torch.no_grad()
def test_a_velocity_field_ignores_end_times_and_guidance(make_network, states):
    student = VelocityTransformer(make_network())
    x = states(3)
    v = student.average_velocity(student(x, T, T, LABELS, None), x, T, T)
    assert torch.equal(v, student(x, T, 0 * T, LABELS, 3 * torch.ones(3)))
    assert torch.equal(v, TransformerTeacher(student.network).velocity(x, T, LABELS))
    unconditional = VelocityTransformer(make_network(num_classes=0))
    assert torch.equal(unconditional(x, T, T, LABELS, None), unconditional(x, T, T, None, None))


def test_without_a_teacher_shape_and_classes_come_from_the_source(make_context):
    context = make_context(source=ImageSource((1, 8, 8), 10))
    student = velocity_field(context)
    assert (student.sample_shape, student.num_classes) == ((1, 8, 8), 10)
    assert student.network.config.patch_size == 2
    assert velocity_field(context, num_classes=0).num_classes is None
    assert flow_map(context).network.config.guidance
    named = velocity_field(context, size="S", patch_size=4).network.config
    assert (named.depth, named.width, named.num_heads, named.patch_size) == (12, 384, 6, 4)
    latents = velocity_field(context, sample_shape=(4, 64, 64), depth=1).network.config
    assert (latents.sample_shape, latents.patch_size) == ((4, 64, 64), 4)
    assert velocity_field(make_context(source=ImageSource((1, 7, 7), None))).network.config.patch_size == 7


def test_shapes_that_no_transformer_takes(make_context):
    with pytest.raises(ConfigError, match=r"sample_shape=\[C, H, W\]"):
        velocity_field(make_context(source=ImageSource(None, None)))
    vectors = GaussianTeacher(torch.zeros(2), torch.ones(2))
    with pytest.raises(ConfigError, match=r"states here are \(2,\).*mlp"):
        flow_map(make_context(vectors))


def test_a_teacher_of_another_family(make_context):
    unet = OtherFamily(NetworkState("unet", {}, {"weight": torch.zeros(3)}))
    student = flow_map(make_context(unet))
    assert (student.sample_shape, student.num_classes) == ((3, 16, 16), 7)
    with pytest.raises(ConfigError, match=r"a unet: none of its weights fit.*initialise=random"):
        student.load_teacher(unet)
    report = flow_map(make_context(unet), initialise="random").load_teacher(unet)
    assert (report.taken, report.left) == ((), ("weight",))
    oracle = OtherFamily(None)
    report = flow_map(make_context(oracle)).load_teacher(oracle)
    assert report.taken == ()
    assert set(report.new) == set(student.network.state_dict())


def test_options_that_contradict_the_teacher_are_listed(teacher, make_context):
    context = make_context(teacher)
    with pytest.raises(ConfigError, match=r"depth 3, not 2.*num_heads 2, not 3|num_heads 2, not 3.*depth 3, not 2"):
        flow_map(context, depth=3, num_heads=2).load_teacher(teacher)
    with pytest.raises(ConfigError, match="num_classes 4, not 5"):
        velocity_field(context, num_classes=4).load_teacher(teacher)
    smaller = flow_map(context, depth=1, initialise="random")
    before = {name: tensor.clone() for name, tensor in smaller.state_dict().items()}
    assert smaller.load_teacher(teacher).taken == ()
    assert all(torch.equal(before[name], tensor) for name, tensor in smaller.state_dict().items())


def test_states_that_are_not_this_students(make_network):
    velocity = VelocityTransformer(make_network()).network_state()
    student = FlowMapTransformer(make_network(jump=True)).network_state()
    with pytest.raises(CheckpointError, match="velocity network, which cannot jump"):
        FlowMapTransformer.from_state(velocity)
    with pytest.raises(CheckpointError, match="distilled student"):
        VelocityTransformer.from_state(student)
    with pytest.raises(CheckpointError, match=r"family 'unet'; expected 'diffusion-transformer'"):
        VelocityTransformer.from_state(replace(velocity, family="unet"))
    with pytest.raises(ConfigError, match=r"config\.jump"):
        FlowMapTransformer(make_network())
    with pytest.raises(ConfigError, match="neither a duration"):
        VelocityTransformer(make_network(guidance=True))
