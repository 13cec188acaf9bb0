"""The teacher diffusers-transformer against calling diffusers by hand, on tiny random networks."""

import json

import pytest
import torch
from freeflow_networks.diffusers_teacher import image_places, pack, unpack
from safetensors.torch import save_file

from freeflow_core.config import ComponentChoice
from freeflow_core.engine.build import Builder
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.plugin import Manager, Registry
from freeflow_core.torchvision_ops import ensure_torchvision_ops
from freeflow_core.types import Guidance

pytest.importorskip("diffusers")
ensure_torchvision_ops()
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DModel  # noqa: E402
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler  # noqa: E402

CPU = torch.device("cpu")
NUM, LENGTH, WIDTH, POOLED = 3, 5, 8, 6


class FluxPipeline:
    """What diffusers' own pipeline does with latents (pipelines/flux/pipeline_flux.py, whose import needs more)."""

    @staticmethod
    def _prepare_latent_image_ids(batch_size, height, width, device, dtype):
        ids = torch.zeros(height, width, 3)
        ids[..., 1] = ids[..., 1] + torch.arange(height)[:, None]
        ids[..., 2] = ids[..., 2] + torch.arange(width)[None, :]
        return ids.reshape(height * width, 3).to(device=device, dtype=dtype)

    @staticmethod
    def _pack_latents(latents, batch_size, num_channels_latents, height, width):
        latents = latents.view(batch_size, num_channels_latents, height // 2, 2, width // 2, 2)
        latents = latents.permute(0, 2, 4, 1, 3, 5)
        return latents.reshape(batch_size, (height // 2) * (width // 2), num_channels_latents * 4)

    @staticmethod
    def _unpack_latents(latents, height, width, vae_scale_factor):
        batch_size, _, channels = latents.shape
        height = 2 * (int(height) // (vae_scale_factor * 2))
        width = 2 * (int(width) // (vae_scale_factor * 2))
        latents = latents.view(batch_size, height // 2, width // 2, channels // 4, 2, 2)
        latents = latents.permute(0, 3, 1, 4, 2, 5)
        return latents.reshape(batch_size, channels // (2 * 2), height, width)


def random_weights(network):
    """diffusers starts its last layer at zero: every answer would be 0."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusers")
    sd3 = random_weights(
        SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=WIDTH, caption_projection_dim=16, pooled_projection_dim=POOLED,
            pos_embed_max_size=8,
        )
    )  # fmt: skip
    sd3.save_pretrained(folder / "sd3" / "transformer")
    for name, guided in (("flux", False), ("flux-guided", True)):
        flux = random_weights(
            FluxTransformer2DModel(
                in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
                joint_attention_dim=WIDTH, pooled_projection_dim=POOLED, guidance_embeds=guided, axes_dims_rope=(4, 2, 2),
            )
        )  # fmt: skip
        flux.save_pretrained(folder / name)
    generator = torch.Generator().manual_seed(2)
    tensors = {
        "prompt_embeds": torch.randn(NUM, LENGTH, WIDTH, generator=generator),
        "pooled_prompt_embeds": torch.randn(NUM, POOLED, generator=generator),
    }
    save_file(tensors, folder / "prompts.safetensors")
    negative = {
        f"negative_{name}": torch.randn(1, *rows.shape[1:], generator=generator) for name, rows in tensors.items()
    }
    save_file(tensors | negative, folder / "guided.safetensors")
    return folder


@pytest.fixture
def build(registry, folders):
    def make(name, embeddings="guided", **options):
        options = {"folder": folders / name, "embeddings": folders / f"{embeddings}.safetensors", **options}
        return Builder(registry, CPU, 0).teacher(ComponentChoice(name="diffusers-transformer", options=options))

    return make


def states(shape, num=4):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num, *shape, generator=generator), torch.tensor([0.0, 0.3, 0.7, 1.0]), torch.tensor([2, 0, 1, 2])


def by_hand(teacher, folders, name, x, t, labels, guidance=None):
    """What diffusers' own pipelines do, one row at a time."""
    from safetensors.torch import load_file

    tensors = load_file(folders / "guided.safetensors")
    rows = []
    for i, label in enumerate(labels.tolist()):
        prompt, pooled = tensors["prompt_embeds"][label : label + 1], tensors["pooled_prompt_embeds"][label : label + 1]
        if name == "sd3":
            rows.append(
                teacher.network(
                    hidden_states=x[i : i + 1], timestep=1000 * t[i : i + 1], encoder_hidden_states=prompt,
                    pooled_projections=pooled, return_dict=False,
                )[0]
            )  # fmt: skip
            continue
        channels, height, width = x.shape[1:]
        ids = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, CPU, torch.float32)
        tokens = teacher.network(
            hidden_states=FluxPipeline._pack_latents(x[i : i + 1], 1, channels, height, width),
            timestep=t[i : i + 1], guidance=guidance, encoder_hidden_states=prompt, pooled_projections=pooled,
            txt_ids=torch.zeros(LENGTH, 3), img_ids=ids, return_dict=False,
        )[0]  # fmt: skip
        rows.append(FluxPipeline._unpack_latents(tokens, 8 * height, 8 * width, 8))
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("name", "options", "shape", "guidance"),
    [
        ("sd3", {}, (4, 8, 8), None),
        ("flux", {"latent_size": [4, 6]}, (4, 4, 6), None),
        ("flux-guided", {"latent_size": [4, 6], "guidance_embedding": 2.5}, (4, 4, 6), 2.5),
    ],
)
@torch.no_grad()
def test_a_teacher_answers_as_diffusers_does(build, folders, name, options, shape, guidance):
    teacher = build(name, **options)
    assert (teacher.sample_shape, teacher.num_classes) == (shape, NUM)
    x, t, labels = states(shape)
    expected = by_hand(
        teacher, folders, name.split("-")[0], x, t, labels, None if guidance is None else torch.tensor([guidance])
    )
    found = teacher.velocity(x, t.double(), labels)
    assert found.dtype is torch.float32
    assert expected.std() > 1e-3
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()) + 1e-6)
    other = teacher.velocity(x, t.double(), (labels + 1) % NUM)
    assert (other - found).abs().max() > 1e-4  # the prompt matters


@pytest.mark.parametrize(("name", "options"), [("sd3", {}), ("flux", {"latent_size": [4, 4]})])
@torch.no_grad()
def test_euler_steps_are_the_scheduler_s(build, registry, name, options):
    teacher = build(name, **options)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    sigmas = [1.0, 0.8, 0.55, 0.2]
    scheduler.set_timesteps(sigmas=sigmas)
    z, _, labels = states(teacher.sample_shape)
    x = z
    for timestep in scheduler.timesteps:
        v = teacher.velocity(x, torch.full((4,), float(timestep) / 1000, dtype=torch.float64), labels)
        x = scheduler.step(v, timestep, x, return_dict=False)[0]
    sampler = Builder(registry, CPU, 0).build("sampler", ComponentChoice(name="euler"))
    grid = torch.tensor([*sigmas, 0.0], dtype=torch.float64)
    unguided = Guidance(torch.ones(4, dtype=torch.float64))
    ours = sampler.sample(teacher, z, grid, labels, unguided).x
    assert (ours - x).abs().max() <= 1e-5 * x.abs().max()
    assert (ours - z).abs().max() > 1e-2


@torch.no_grad()
def test_guidance_goes_by_the_negative_row(build):
    teacher = build("sd3")
    x, t, labels = states(teacher.sample_shape)
    null = teacher.null_condition(labels)
    assert null.tolist() == [NUM] * 4
    conditional, unconditional = teacher.velocity(x, t, labels), teacher.velocity(x, t, null)
    weight = torch.tensor([3.0, 1.0, 3.0, 3.0])
    guided = teacher.guided_velocity(x, t, labels, weight)
    expected = unconditional + weight.reshape(-1, 1, 1, 1) * (conditional - unconditional)
    assert torch.allclose(guided, expected, atol=1e-5)
    with pytest.raises(ConfigError, match="negative_NAME"):
        build("sd3", embeddings="prompts").null_condition(labels)


def test_a_half_precision_network_stays_so(build):
    teacher = build("sd3", dtype="bf16").double()
    assert next(teacher.network.parameters()).dtype is torch.bfloat16
    x, t, labels = states(teacher.sample_shape)
    assert teacher.velocity(x, t, labels).dtype is torch.float32


def test_shapes_alone_need_no_weights(folders, registry, tmp_path):
    config = json.loads((folders / "sd3" / "transformer" / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    options = {"folder": tmp_path, "embeddings": folders / "guided.safetensors"}
    builder = Builder(registry, torch.device("meta"), 0)
    teacher = builder.teacher(ComponentChoice(name="diffusers-transformer", options=options))
    assert next(teacher.network.parameters()).is_meta
    with pytest.raises(CheckpointError, match="diffusers cannot read a SD3Transformer2DModel"):
        Builder(registry, CPU, 0).teacher(ComponentChoice(name="diffusers-transformer", options=options))


def test_what_does_not_fit_is_refused(build, folders, tmp_path):
    with pytest.raises(ConfigError, match=r"nothing is fetched from the hub"):
        build("missing")
    with pytest.raises(ConfigError, match=r"multiples of 2 and at most 16"):
        build("sd3", latent_size=[7, 8])
    save_file(
        {"prompt_embeds": torch.zeros(1, 2, 9), "pooled_prompt_embeds": torch.zeros(1, POOLED)},
        folders / "wide.safetensors",
    )
    with pytest.raises(ConfigError, match=r"takes \(K, L, 8\)"):
        build("sd3", embeddings="wide")
    save_file({"prompts": torch.zeros(1, 2, 8)}, folders / "named.safetensors")
    with pytest.raises(ConfigError, match=r"expected prompt_embeds, pooled_prompt_embeds"):
        build("sd3", embeddings="named")
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}', "utf-8")
    with pytest.raises(ConfigError, match="describes a UNet2DModel"):
        build("sd3", folder=tmp_path)


def test_weights_that_miss_tensors_are_refused(build, folders, tmp_path):
    from safetensors.torch import load_file

    source = folders / "flux"
    tensors = load_file(source / "diffusion_pytorch_model.safetensors")
    tensors.pop("proj_out.weight")
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((source / "config.json").read_text("utf-8"), "utf-8")
    with pytest.raises(CheckpointError, match=r"proj_out.weight"):
        build("flux", folder=tmp_path, latent_size=[4, 4])


def test_packing_is_diffusers_own():
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tokens = FluxPipeline._pack_latents(x, 2, 3, 4, 6)
    assert torch.equal(pack(x), tokens)
    assert torch.equal(unpack(tokens, 4, 6), x)
    assert torch.equal(image_places(4, 6, x), FluxPipeline._prepare_latent_image_ids(1, 2, 3, CPU, torch.float32))


@pytest.mark.parametrize(
    ("name", "options", "place"),
    [
        ("sd3", {}, "time_text_embed"),
        ("sd3", {"dtype": "bf16"}, "time_text_embed"),
        ("flux", {"latent_size": [4, 4]}, "time_text_embed"),
        ("flux-guided", {"latent_size": [4, 4]}, "time_text_embed"),
        ("unet", {}, "time_embedding"),
    ],
)
@pytest.mark.parametrize("rank", [None, 2])
def test_a_wrapped_network_starts_as_the_teacher(build, registry, name, options, place, rank):
    if name == "unet":
        choice = {"name": "callable", "network": f"{__name__}:unet", "options": {}, "sample_shape": [1, 8, 8]}
        choice |= {"arguments": ["x", "t"], "time_scale": 1000}
        registry = Registry(Manager.load(trust=True))
        teacher = Builder(registry, CPU, 0).teacher(ComponentChoice.model_validate(choice))
    else:
        teacher = build(name, **options)
    student = Builder(registry, CPU, 0).build(
        "student", ComponentChoice(name="wrapped", options={"lora_rank": rank}), teacher=teacher
    )
    assert [found.path for found in student.jump_embedding.places] == [place]
    x, t, labels = states(teacher.sample_shape)
    labels = None if teacher.num_classes is None else labels
    trained = {p.dtype for p in student.parameters() if p.requires_grad}
    assert trained == {torch.float32}  # whatever the teacher's
    velocity = teacher.velocity(x, t, labels)
    found = student(x, t, t, labels, None)
    if options.get("dtype") and rank is None:  # the student trains in 32 bits
        assert (found - velocity).abs().mean() < 0.1 * velocity.std()
    else:
        assert torch.equal(found, velocity)
    student(x, t, t / 2, labels, 1 + t).square().mean().backward()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)


def unet():
    return random_weights(
        UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
        )
    )  # fmt: skip


@torch.no_grad()
def test_the_run_s_guidance_weight_is_what_a_guidance_distilled_network_is_fed(build):
    teacher = build("flux-guided", embeddings="prompts", latent_size=[4, 4], guidance_embedding=None)
    fed = build("flux-guided", embeddings="prompts", latent_size=[4, 4], guidance_embedding=2.5)
    x, t, labels = states(teacher.sample_shape)
    weight = torch.tensor([2.5, 1.0, 2.5, 2.5])
    guided, unguided = teacher.guided_velocity(x, t, labels, weight), teacher.velocity(x, t, labels)
    expected = torch.where((weight == 1)[:, None, None, None], unguided, fed.velocity(x, t, labels))
    assert torch.allclose(guided, expected, atol=1e-6)
    assert (guided - unguided)[0].abs().max() > 1e-6
