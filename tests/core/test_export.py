"""A student in other programs' formats gives its own samples there; what cannot be written leaves nothing behind."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from freeflow_toy.config import MLPPolicyStudentConfig, MLPStudentConfig
from freeflow_toy.mlp import MLPPolicyStudent, MLPStudent
from freeflow_transformers.architecture import TransformerConfig
from freeflow_transformers.network import DiffusionTransformer, fill_with_random_weights
from freeflow_transformers.students import FlowMapTransformer
from PIL import Image
from run_helpers import freeflow

from freeflow_core import api
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.network_file import save_network
from freeflow_core.torchvision_ops import ensure_torchvision_ops

PIXELS = {"sample_shape": (1, 8, 8), "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2, "jump": True}
LATENTS = {
    **PIXELS, "sample_shape": (4, 8, 8), "num_classes": 10, "guidance": True, "qk_norm": True, "learn_sigma": True,
    "time_direction": "data-at-1", "sign": "data-minus-noise",
}  # fmt: skip
"""A student whose every convention differs from this project's."""


def write_student(path, student, component, **metadata):
    save_network(path, student.network_state(), {"component": component, "start_times": "prior", **metadata})
    return path


def transformer(options):
    generator = torch.Generator().manual_seed(0)
    network = DiffusionTransformer(TransformerConfig(**options), generator)
    fill_with_random_weights(network, generator)
    return FlowMapTransformer(network)


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "student.safetensors"
    return write_student(
        path, transformer(LATENTS), "transformer", codec={"name": "small-vae"}, guidance_weight=1.5, teacher="mnist"
    )


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    path = tmp_path_factory.mktemp("pixels") / "student.safetensors"
    return write_student(path, transformer(PIXELS), "transformer", codec="pixels")


def test_a_program_of_torch_export_takes_any_number_of_samples(pixels, tmp_path):
    freeflow("export", "--run", pixels, "--output", tmp_path / "student.pt2")
    program = torch.export.load(tmp_path / "student.pt2").module()
    for num in (1, 5):
        noise = PhiloxDraws(4, torch.arange(num)).noise("prior", (1, 8, 8))
        images = ((program(noise, torch.ones(num)) + 1) * 127.5).round()
        assert (images - api.load_student(pixels).sample(num, seed=4).tensor.float()).abs().max() <= 1


def test_an_onnx_file_is_sampled_without_torch_by_the_script_beside_it(latents, tmp_path):
    api.export(latents, tmp_path / "student.onnx")
    script = str(tmp_path / "sample_student.py")
    code = f"import runpy, sys; sys.modules['torch'] = None; runpy.run_path({script!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, "--num", "12", "--seed", "3", "--labels", "3,7", "--output", "grid.png"]
    subprocess.run(command, check=True, cwd=tmp_path)
    grid = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    ours = np.asarray(api.load_student(latents).sample(12, seed=3, labels=[3, 7]))[..., 0]
    drawn = grid.reshape(2, 28, 10, 28).swapaxes(1, 2).reshape(20, 28, 28)
    assert ours.std() > 10
    assert abs(drawn[:12] - ours).max() <= 1


@pytest.mark.parametrize("wrong", [["--labels", "3,10"], ["--labels", "-1"], ["--labels", "three"], ["--num", "0"]])
def test_the_script_beside_an_onnx_file_refuses_what_the_student_cannot_do(pixels, tmp_path, wrong):
    write_student(tmp_path / "student.safetensors", transformer({**PIXELS, "num_classes": 10}), "transformer")
    api.export(tmp_path / "student.safetensors", tmp_path / "student.onnx")
    command = [sys.executable, tmp_path / "sample_student.py", f"{wrong[0]}={wrong[1]}", "--output", "grid.png"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 2, ran.stderr
    assert wrong[0] in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "grid.png").exists()


def test_labels_that_are_no_word_of_ours_are_refused(latents):
    with pytest.raises(ConfigError, match="'seven'"):
        api.load_student(latents).sample(3, labels="seven")


def test_a_guidance_weight_it_was_not_trained_with_is_warned_of(tmp_path, caplog):
    path = write_student(tmp_path / "s.safetensors", transformer(PIXELS), "transformer", guidance_trained=[1.0, 2.5])
    student = api.load_student(path)
    student.sample(1, guidance=2.5)
    assert not caplog.records
    student.sample(1, guidance=3.0)
    assert "1 to 2.5" in caplog.text


def test_a_diffusers_pipeline_draws_the_images_of_freeflow_sample(latents, tmp_path, monkeypatch):
    freeflow("export", "--run", latents, "--format", "diffusers", "--output", tmp_path / "pipeline")
    ensure_torchvision_ops()
    import diffusers.utils.dynamic_modules_utils as modules
    from diffusers import DiffusionPipeline

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "pipeline", trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(class_labels=[3, 7], num_images=5, seed=2).images
    ours = np.asarray(api.load_student(latents).sample(5, labels=[3, 7], seed=2))[..., 0].astype(int)
    assert max(abs(np.asarray(a).astype(int) - b).max() for a, b in zip(drawn, ours, strict=True)) <= 1
    guided = pipeline(class_labels=3, guidance_scale=3.0, seed=2, output_type="pt").images
    assert guided.shape == (1, 1, 28, 28)
    with pytest.raises(ValueError, match="trained to jump"):
        pipeline(num_inference_steps=2)
    with pytest.raises(ValueError, match=r"0 \.\.\. 9"):
        pipeline(class_labels=[10])


def test_a_student_of_vectors_gives_its_states(tmp_path):
    student = MLPStudent(MLPStudentConfig(sample_shape=(2,), width=8, depth=1, zero_init=False))
    path = write_student(tmp_path / "mlp.safetensors", student, "mlp")
    api.export(path, tmp_path / "mlp.pt2")
    program, z, ones = torch.export.load(tmp_path / "mlp.pt2").module(), torch.randn(7, 2), torch.ones(7)
    assert torch.allclose(program(z, ones), student.flow_map(z, ones, 0 * ones, None, ones), atol=1e-6)
    with pytest.raises(ConfigError, match=r"MLPStudent.*diffusers"):
        api.export(path, tmp_path / "folder", format="diffusers")
    assert {p.name for p in tmp_path.iterdir()} == {"mlp.safetensors", "mlp.pt2"}


def test_a_student_that_cannot_be_traced_is_refused(tmp_path):
    student = MLPPolicyStudent(MLPPolicyStudentConfig(sample_shape=(2,), width=8, depth=1))
    path = write_student(tmp_path / "policy.safetensors", student, "mlp-policy")
    with pytest.raises(ConfigError, match=r"MLPPolicyStudent cannot be exported as pt2.*student\.safetensors"):
        api.export(path, tmp_path / "policy.pt2")
    assert [p.name for p in tmp_path.iterdir()] == ["policy.safetensors"]


def test_what_is_wrong_is_told_and_nothing_is_left(pixels, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"\.onnx.*'\.bin'"):
        api.export(pixels, tmp_path / "student.bin")
    with pytest.raises(ConfigError, match=r"ends in \.onnx"):
        api.export(pixels, tmp_path / "student.pt2", format="onnx")
    (tmp_path / "sample_kept.py").write_text("mine")
    with pytest.raises(ConfigError, match=r"sample_kept\.py exists"):
        api.export(pixels, tmp_path / "kept.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime.*pip install 'freeflow-distill\[onnx\]'"):
        api.export(pixels, tmp_path / "other.onnx")
    monkeypatch.setattr("freeflow_core.tools.export.formats._TOLERANCE", -1.0)
    with pytest.raises(CheckpointError, match="other samples"):
        api.export(pixels, tmp_path / "wrong.pt2")
    assert [p.name for p in tmp_path.iterdir()] == ["sample_kept.py"]
