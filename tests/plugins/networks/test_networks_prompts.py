"""Prompts of a text file: encoded once by a pipeline's own encoders, on tiny random pipelines."""

import json

import pytest
import torch
from freeflow_networks import prompts as prompts_module
from PIL import Image
from tiny_files import save_autoencoder

from freeflow_core import api
from freeflow_core.config import ComponentChoice
from freeflow_core.engine.build import Builder
from freeflow_core.errors import ConfigError
from freeflow_core.torchvision_ops import ensure_torchvision_ops

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
ensure_torchvision_ops()

CPU = torch.device("cpu")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROMPTS = ("a cat", "a dog", "the sea")
D, T = "diffusers", "transformers"


def write_texts(folder, clip_class, clips, t5):
    """Text encoders of random weights with their tokenizers: CLIPs of 8 numbers and seven tokens, a T5 of 16 numbers.

    ``clips`` and ``t5`` are what their names end in. What ``model_index.json`` says of them.
    """
    from transformers import CLIPTextConfig, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

    vocabulary = {
        t: i for i, t in enumerate([*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"])
    }
    clip_tokens = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=7)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)] + [(c, -2.0) for c in LETTERS]
    t5_tokens = T5Tokenizer(vocab=pieces, extra_ids=0)
    sizes = CLIPTextConfig(
        vocab_size=54, hidden_size=8, intermediate_size=16, projection_dim=3, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=7, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    t5_sizes = T5Config(vocab_size=len(t5_tokens), d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    made = [(number, lambda: clip_class(sizes), clip_tokens) for number in clips]
    parts = {}
    for number, encoder, tokens in [*made, (t5, lambda: T5EncoderModel(t5_sizes), t5_tokens)]:
        network = encoder()
        network.save_pretrained(folder / f"text_encoder{number}")
        tokens.save_pretrained(folder / f"tokenizer{number}")
        parts[f"text_encoder{number}"] = [T, type(network).__name__]
        parts[f"tokenizer{number}"] = [T, type(tokens).__name__]
    return parts


def write(folder, pipeline, network, parts):
    """The rest of a pipeline's folder, with an autoencoder of 4 channels and shifted latents."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    save_autoencoder(folder / "vae", scaling_factor=0.36, shift_factor=0.12)
    index = {"transformer": [D, type(network).__name__], "scheduler": [D, "FlowMatchEulerDiscreteScheduler"]}
    index |= {"vae": [D, "AutoencoderKL"], "image_encoder": [None, None], "feature_extractor": [None, None]} | parts
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **index}), "utf-8")
    (folder / "prompts.txt").write_text("a cat\n\na dog \nthe sea\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stable Diffusion 3, as its folder looks."""
    from diffusers import SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection

    folder = tmp_path_factory.mktemp("pipeline") / "sd3"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = write_texts(folder, CLIPTextModelWithProjection, ("", "_2"), "_3")
        network = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=6,
            pos_embed_max_size=8,
        )  # fmt: skip
        return write(folder, "StableDiffusion3Pipeline", network, parts)


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """FLUX-dev, as its folder looks: one CLIP, one T5, and a network that takes its guidance as an input."""
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextModel

    folder = tmp_path_factory.mktemp("pipeline") / "flux"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = write_texts(folder, CLIPTextModel, ("",), "_2")
        network = FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, pooled_projection_dim=8, guidance_embeds=True, axes_dims_rope=(4, 2, 2),
        )  # fmt: skip
        return write(folder, "FluxPipeline", network, parts)


@pytest.fixture
def options(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FREEFLOW_CACHE", str(tmp_path / "cache"))
    return {"folder": str(folder), "prompts": str(folder / "prompts.txt"), "prompt_length": 9}


def test_prompts_are_encoded_once_as_the_pipeline_does(registry, folder, options, monkeypatch, tmp_path):
    from diffusers import StableDiffusion3Pipeline

    choice = ComponentChoice(name="diffusers-transformer", options=options)
    planned = Builder(registry, torch.device("meta"), 0).teacher(choice)  # before anything is encoded
    assert not (tmp_path / "cache").exists()
    teacher = Builder(registry, CPU, 0).teacher(choice)
    assert (teacher.num_classes, teacher.class_names) == (3, PROMPTS)
    assert planned.num_classes == 3
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, vae=None, transformer=teacher.network)
    found = pipeline.encode_prompt(list(PROMPTS), None, None, negative_prompt=[""] * 3, max_sequence_length=9)
    expected, negative, pooled, negative_pooled = found
    rows = teacher.conditions.rows(torch.tensor([0, 1, 2, 3]), CPU, torch.float32)
    torch.testing.assert_close(rows["prompt_embeds"], torch.cat([expected, negative[:1]]))
    torch.testing.assert_close(rows["pooled_prompt_embeds"], torch.cat([pooled, negative_pooled[:1]]))
    assert teacher.null_condition(torch.tensor([1, 2])).tolist() == [3, 3]

    def again(*_):
        raise AssertionError("encoded a second time")

    monkeypatch.setattr(prompts_module, "_encode", again)
    cached = Builder(registry, CPU, 0).teacher(choice).conditions.rows(torch.tensor([0, 1, 2, 3]), CPU, torch.float32)
    assert all(torch.equal(cached[name], rows[name]) for name in rows)
    with pytest.raises(AssertionError, match="a second time"):
        Builder(registry, CPU, 0).teacher(ComponentChoice(name=choice.name, options=options | {"prompt_length": 8}))


def test_a_text_conditioned_teacher_becomes_an_adapted_student(manager, options, tmp_path):
    config = api.resolve_config(
        "distill",
        preset="any-teacher",
        overrides={
            "name": "text",
            "teacher": {"name": "diffusers-transformer", **options},
            "student": {"name": "wrapped", "lora_rank": 2, "width": 16},
            "training": {"images": 32, "batch_size": 16, "optimizer": {"learning_rate": 1e-2}},
            "objective": {"name": "freeflow", "guidance_max": 3.0},
            "evaluation": {"enabled": False},
            "runtime": {"device": "cpu", "threads": 1},
            "trackers": [],
        },
        manager=manager,
    )
    for processes in (2, 1):  # of several without memory, of one by its step
        plan = api.plan(config, num_processes=processes, manager=manager)
        assert plan.extrapolated_from is None
    assert plan.network("student").weights < plan.network("teacher").weights
    result = api.distill(config, output=tmp_path / "run", manager=manager)
    report = (tmp_path / "run" / "report.md").read_text("utf-8")
    assert all(prompt in report for prompt in PROMPTS)
    assert result.status == "finished"
    size = (tmp_path / "run" / "student.safetensors").stat().st_size
    assert size < plan.network("teacher").weights


def test_a_guidance_distilled_pipeline_becomes_an_adapted_student_with_pictures(
    manager, registry, flux, options, tmp_path
):
    """FLUX: prompts by its own encoders, the run's weight as its own input, and pictures by its own autoencoder."""
    from diffusers import FluxPipeline

    own = {**options, "folder": str(flux), "prompts": str(flux / "prompts.txt"), "latent_size": [4, 4]}
    own["guidance_embedding"] = None
    overrides = {
        "name": "flux",
        "teacher": {"name": "diffusers-transformer", **own},
        "student": {"name": "wrapped", "lora_rank": 2, "width": 16},
        "codec": {"name": "diffusers-vae", "folder": str(flux)},
        "training": {"images": 32, "batch_size": 16, "optimizer": {"learning_rate": 1e-2}},
        "objective": {"name": "freeflow", "guidance_max": 3.0},
        "evaluation": {"num_samples": 6, "reference_steps": 2, "guidance_weight": 2.0, "evaluators": []},
        "runtime": {"device": "cpu", "threads": 1},
        "trackers": [],
    }
    config = api.resolve_config("distill", preset="any-teacher", overrides=overrides, manager=manager)
    for processes in (2, 1):  # of several without memory, of one by its step
        assert api.plan(config, num_processes=processes, manager=manager).extrapolated_from is None
    assert api.distill(config, output=tmp_path / "run", manager=manager).status == "finished"
    report = (tmp_path / "run" / "report.md").read_text("utf-8")
    assert all(prompt in report for prompt in PROMPTS)
    pictures = sorted((tmp_path / "run" / "samples").glob("*.png"))
    assert pictures
    assert all(Image.open(file).mode == "RGB" for file in pictures)
    teacher = Builder(registry, CPU, 0).teacher(ComponentChoice(name="diffusers-transformer", options=own))
    assert teacher.codec == "diffusers-vae"
    pipeline = FluxPipeline.from_pretrained(flux, vae=None, transformer=teacher.network)
    expected, pooled, _ = pipeline.encode_prompt([*PROMPTS, ""], max_sequence_length=9)
    rows = teacher.conditions.rows(torch.tensor([0, 1, 2, 3]), CPU, torch.float32)
    torch.testing.assert_close(rows["prompt_embeds"], expected)
    torch.testing.assert_close(rows["pooled_prompt_embeds"], pooled)
    x, t, labels = torch.randn(2, 4, 4, 4), torch.full((2,), 0.6), torch.tensor([0, 2])
    one, three = (teacher.guided_velocity(x, t, labels, torch.full((2,), w)) for w in (1.0, 3.0))
    torch.testing.assert_close(one, teacher.velocity(x, t, labels))
    assert not torch.allclose(one, three, atol=1e-4)


def test_what_cannot_be_encoded_is_told(registry, folder, options, tmp_path):
    def build(**changed):
        choice = ComponentChoice(name="diffusers-transformer", options=options | changed)
        return Builder(registry, CPU, 0).teacher(choice)

    (tmp_path / "empty.txt").write_text("\n \n", "utf-8")
    with pytest.raises(ConfigError, match="holds no prompts"):
        build(prompts=str(tmp_path / "empty.txt"))
    with pytest.raises(ConfigError, match="cannot be read"):
        build(prompts=str(tmp_path / "missing.txt"))
    with pytest.raises(ConfigError, match="either prompts, a text file, or embeddings"):
        build(embeddings=str(tmp_path / "some.npz"))
    with pytest.raises(ConfigError, match="a whole pipeline"):
        build(folder=str(folder / "transformer"))
