"""diffusers' AutoencoderKL from a file or folder, without executing anything and without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.network_file import check_tensors, load_tensors
from freeflow_core.torchvision_ops import ensure_torchvision_ops

PUBLISHED_CONFIG: Mapping[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 256,
    "scaling_factor": 0.18215,
}
"""``config.json`` of stabilityai/sd-vae-ft-mse and -ema: the KL-f8 autoencoder of Stable Diffusion 1 and 2."""

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)$")


def load_autoencoder(path: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """An ``AutoencoderKL``, frozen, from a diffusers folder, or from a file with the published configuration.

    Raises:
        ConfigError: diffusers is not installed.
        CheckpointError: nothing there, not safetensors, or another network.
    """
    weights, config = (_weights_in(path), _read_config(path)) if path.is_dir() else (path, PUBLISHED_CONFIG)
    tensors = {_current_name(name): tensor.to(dtype) for name, tensor in load_tensors(weights)[0].items()}
    try:
        with torch.device("meta"):  # no weights are initialised: no time, and nothing drawn from torch's generator
            network: nn.Module = autoencoder_class().from_config(dict(config))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"diffusers cannot build an AutoencoderKL from {path / 'config.json'}: {error}."
        ) from error
    check_tensors(network.state_dict(), tensors, f"autoencoder in {weights}")
    network.load_state_dict(tensors, assign=True)
    return network.to(device).eval().requires_grad_(False)


def autoencoder_class() -> Any:
    """diffusers' ``AutoencoderKL``, whose import takes seconds. Raises ``ConfigError`` when it is not installed."""
    ensure_torchvision_ops()
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ConfigError(
            f"The codec sd-vae needs diffusers, which cannot be imported ({error}). "
            "Install it with: pip install 'freeflow-distill[vae]'"
        ) from error
    return AutoencoderKL


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text("utf-8"))
        name = config.get("_class_name", "AutoencoderKL")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} holds no readable config.json ({error}). Expected an AutoencoderKL folder in the diffusers "
            f"layout: config.json beside {WEIGHTS_FILE}."
        ) from error
    if name != "AutoencoderKL":
        raise CheckpointError(f"{file} describes a {name}; the codec sd-vae needs an AutoencoderKL.")
    return config


def _weights_in(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    if folder / WEIGHTS_FILE in found:
        return folder / WEIGHTS_FILE
    if len(found) != 1:
        raise CheckpointError(
            f"{folder} holds {len(found) or 'no'} .safetensors files and no {WEIGHTS_FILE}. "
            "Expected an AutoencoderKL folder in the diffusers layout; pickled .bin weights are not read."
        )
    return found[0]


def _current_name(name: str) -> str:
    """The published files were written by an early diffusers, which named the attention's layers differently."""
    return _OLD_ATTENTION.sub(lambda m: f"{m[1]}.{_OLD_ATTENTION_NAMES[m[2]]}.{m[3]}", name)
