"""What the components need that their defaults cannot give: options, tiny files made on the spot, or contract settings.

A component that is not named here is built from its defaults; one that then cannot be built fails its contract.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_files import save_autoencoder, write_mnist
from torch import nn

from freeflow_core.torchvision_ops import ensure_torchvision_ops


@dataclass(frozen=True)
class Case:
    """Options of a component, and attributes of its contract."""

    options: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


Maker = Callable[[Path], Case]
TINY_NETWORK = {
    "initialise": "random", "depth": 1, "width": 32, "num_heads": 2, "num_classes": 5, "patch_size": 8,
}  # fmt: skip
MIXTURE = {"name": "gaussian-mixture", "num_modes": 4, "num_classes": 2, "std": 0.3}
EXACT_FIELD = """
import torch

def velocity(x, t):
    mean = torch.tensor([0.5, -1.0]).to(x)
    variance = torch.tensor([0.25, 4.0]).to(x)
    t = t.to(x)[:, None]
    slope = (t - (1 - t) * variance) / ((1 - t) ** 2 * variance + t ** 2)
    return slope * (x - (1 - t) * mean) - mean
"""


def given(**attributes):
    """A case with options and contract attributes that need no file."""
    return lambda **options: lambda folder: Case(options, attributes)


def _images(number, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, 8, 8), dtype=np.uint8)


def mnist(folder):
    write_mnist(folder, train=_images(40), t10k=_images(20, seed=1))
    return Case({"path": str(folder)})


def npz(folder):
    np.savez(folder / "images.npz", images=_images(40)[..., None], labels=np.arange(40) % 4)
    return Case({"path": str(folder / "images.npz"), "held_out": 8})


def image_folder(folder):
    for number, values in enumerate(_images(24)):
        path = folder / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(values).save(path)
    return Case({"path": str(folder), "held_out": 6, "workers": 1})


def latents(folder):
    from freeflow_core import api

    settings = ["source.held_out=1700"]
    api.encode(source="digits", codec="pixels", output=folder / "latents", settings=settings, device="cpu")
    return Case({"path": str(folder / "latents")})


def sd_vae(folder):
    return Case({"checkpoint": str(save_autoencoder(folder))}, {"tolerance": None})


def diffusers_vae(folder):
    save_autoencoder(folder / "vae", shift_factor=0.1, scaling_factor=1.5)
    return Case({"folder": str(folder)}, {"tolerance": None})


def released_student(folder):
    from freeflow_transformers.architecture import TransformerConfig
    from freeflow_transformers.network import DiffusionTransformer
    from freeflow_transformers.students import FlowMapTransformer

    config = TransformerConfig(
        sample_shape=(4, 32, 32), patch_size=4, width=32, depth=1, num_heads=2, num_classes=5, jump=True, guidance=True
    )
    student = FlowMapTransformer(DiffusionTransformer(config, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        for p in student.parameters():  # a fresh network's output layer is zero
            p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    student.export(folder / "student.safetensors")
    return Case({"checkpoint": str(folder / "student.safetensors"), "num_heads": 2, "family": "sit-repa"})


def callable_teacher(folder):
    (folder / "exact_field.py").write_text(EXACT_FIELD, "utf-8")
    return Case({"network": f"{folder / 'exact_field.py'}:velocity", "sample_shape": [2]})


class ExactField(nn.Module):
    """The same as a module, to be traced."""

    def forward(self, x, t):
        mean, variance = torch.tensor([0.5, -1.0]).to(x), torch.tensor([0.25, 4.0]).to(x)
        time = t.to(x).unsqueeze(1)
        slope = (time - (1 - time) * variance) / ((1 - time) ** 2 * variance + time**2)
        return slope * (x - (1 - time) * mean) - mean


def torch_file_teacher(folder):
    torch.jit.script(ExactField()).save(str(folder / "field.pt"))
    return Case({"file": str(folder / "field.pt"), "sample_shape": [2]})


def diffusers_teacher(folder):
    ensure_torchvision_ops()
    diffusers = pytest.importorskip("diffusers")
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=12, out_channels=4,
            pos_embed_max_size=8,
        ).save_pretrained(folder)  # fmt: skip
        names = {"prompt_embeds": (3, 5, 16), "pooled_prompt_embeds": (3, 12)}
        tensors = {name: torch.randn(shape) for name, shape in names.items()}
        tensors |= {f"negative_{name}": torch.randn(1, *shape[1:]) for name, shape in names.items()}
    save_file(tensors, folder / "embeddings.safetensors")
    return Case({"folder": str(folder), "embeddings": str(folder / "embeddings.safetensors")}, {"trained": False})


def mlflow(folder):
    """One store for the whole session: making its tables takes seconds."""
    return Case({"uri": f"sqlite:///{(folder.parent / 'contracts-mlflow.db').as_posix()}", "timeout_seconds": 5})


def wandb(folder):
    """Files on the disk, nothing sent. One program serves all runs of the session: starting it takes seconds."""
    return Case({"mode": "offline"})


CASES: Mapping[tuple[str, str], Maker] = {
    ("teacher", "autoguidance"): given()(main=MIXTURE, guide=MIXTURE | {"std": 0.6}),
    ("teacher", "gaussian-mixture"): given()(num_modes=4, num_classes=2, std=0.3),
    ("teacher", "sit"): given(trained=False)(**TINY_NETWORK),
    ("teacher", "sit-repa"): given(trained=False)(**TINY_NETWORK),
    ("teacher", "dit"): given(trained=False)(**TINY_NETWORK),
    ("teacher", "callable"): callable_teacher,
    ("teacher", "torch-file"): torch_file_teacher,
    ("teacher", "diffusers-transformer"): diffusers_teacher,
    ("student", "freeflow"): released_student,
    ("student", "freeflow-xl-2-256"): released_student,
    ("student", "freeflow-sit-xl-2-256"): released_student,
    ("student", "freeflow-xl-2-512"): released_student,
    ("objective", "consistency"): given()(num_steps=8),
    ("objective", "pairs"): given()(solver_steps=4),
    ("objective", "score-distillation"): given()(critic_updates=1),
    # The gradient in these vanishes row by row at the exact map; the others' papers promise it on average.
    ("objective", "freeflow-prediction"): given(stationary=True)(derivative="forward-mode"),
    ("evaluator", "fidelity"): given()(derivative_samples=8, durations=[1.0]),
    ("codec", "sd-vae"): sd_vae,
    ("codec", "diffusers-vae"): diffusers_vae,
    ("codec", "small-vae"): given(image_shape=(1, 28, 28), tolerance=None)(),
    ("source", "mnist"): mnist,
    ("source", "fashion-mnist"): mnist,
    ("source", "npz"): npz,
    ("source", "image-folder"): image_folder,
    ("source", "latents"): latents,
    ("verifier", "callable"): given(prefers_real_images=False)(function="contract_verifier:brightness"),
    # A ratio of densities says nothing of what neither has, such as noise.
    ("verifier", "density-ratio"): given(prefers_real_images=False)(num_samples=60),
    ("tracker", "mlflow"): mlflow,
    ("tracker", "wandb"): wandb,
}
