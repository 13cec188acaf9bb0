"""diffusers' transformers from a local folder: nothing is executed, nothing is fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.torchvision_ops import ensure_torchvision_ops

SUPPORTED = ("SD3Transformer2DModel", "FluxTransformer2DModel")


def transformer_folder(folder: Path, subfolder: str | None) -> Path:
    """Where config.json lies: the subfolder asked for, else `transformer` of a pipeline, else the folder itself.

    Raises ``ConfigError`` when there is none.
    """
    candidates = [folder / subfolder] if subfolder is not None else [folder / "transformer", folder]
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    raise ConfigError(
        f"There is no {' or '.join(str(candidate / 'config.json') for candidate in candidates)}. teacher.folder names "
        "a local folder in the diffusers layout; nothing is fetched from the hub. Get one with, say, "
        "`huggingface-cli download OWNER/NAME --include 'transformer/*' --local-dir FOLDER`."
    )


def load_transformer(folder: Path, dtype: torch.dtype | None, *, shapes_only: bool = False) -> nn.Module:
    """The transformer, frozen, on the CPU.

    Args:
        folder: config.json beside safetensors, in one file or in shards with their index.
        dtype: of its floating tensors; None: as stored.
        shapes_only: on the meta device, without reading the weights; ``dtype`` None is then float32.

    Raises:
        ConfigError: diffusers is not installed, or the folder holds another kind of network.
        CheckpointError: weights that are missing, damaged, or do not fit config.json.
    """
    name = _class_name(folder / "config.json")
    model_class = _model_class(name)
    if shapes_only:
        with torch.device("meta"):
            network: nn.Module = model_class.from_config(model_class.load_config(folder, local_files_only=True))
        return network.to(dtype or torch.float32)
    try:
        network, report = model_class.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            torch_dtype="auto" if dtype is None else dtype,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"diffusers cannot read a {name} from {folder}: {' '.join(str(error).split())[:400]}. Expected config.json "
            "beside the .safetensors files that belong to it; pickled .bin weights are not read."
        ) from error
    wrong = {kind: report.get(f"{kind}_keys") for kind in ("missing", "unexpected", "mismatched")}
    if any(wrong.values()):
        listed = "; ".join(f"{kind}: {', '.join(map(str, keys))[:200]}" for kind, keys in wrong.items() if keys)
        raise CheckpointError(f"The weights in {folder} are not those of its config.json ({listed}).")
    return network.eval().requires_grad_(False)


def _class_name(file: Path) -> str:
    try:
        config: dict[str, Any] = json.loads(file.read_text("utf-8"))
        name = str(config["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} does not say what it describes ({error}); expected one written by diffusers."
        ) from error
    if name not in SUPPORTED:
        raise ConfigError(
            f"{file} describes a {name}; the teacher diffusers-transformer reads {' and '.join(SUPPORTED)}. Another "
            "network can be a teacher through `callable`, with its convention as options."
        )
    return name


def _model_class(name: str) -> Any:
    ensure_torchvision_ops()
    try:
        import diffusers

        return getattr(diffusers, name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The teacher diffusers-transformer needs a diffusers with {name} ({error}). "
            "Install it with: pip install 'freeflow-distill[diffusers]'"
        ) from error
