"""Prompts from a file, encoded once by a pipeline's own text encoders, and kept in the cache."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from freeflow_core.errors import ConfigError
from freeflow_core.network_file import load_tensors, save_tensors
from freeflow_core.torchvision_ops import diffusers_class
from freeflow_core.weights import cache_folder
from freeflow_networks.calling import NEGATIVE, Conditions, conditions_of

_log = logging.getLogger("freeflow")
PROMPTS, POOLED = "prompt_embeds", "pooled_prompt_embeds"
_BATCH = 8
_CLIP_TOKENS = 77
_LENGTHS = {"StableDiffusion3Pipeline": 256, "FluxPipeline": 512}
"""Tokens of T5, as the pipelines' own defaults; SD3's follow those of CLIP."""


def read_prompts(file: Path) -> tuple[str, ...]:
    """The lines of ``file`` that are not empty. Raises ``ConfigError`` for one that cannot be read, or holds none."""
    try:
        prompts = tuple(line.strip() for line in file.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The prompts {file} cannot be read: {error}. Expected a text file, a prompt a line."
        ) from None
    if not prompts:
        raise ConfigError(f"{file} holds no prompts; expected a text file, a prompt a line.")
    return prompts


def encode_prompts(
    folder: Path,
    network: nn.Module,
    prompts: tuple[str, ...],
    negative: str | None,
    length: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Conditions:
    """A table of ``prompts`` for ``network``, from the cache, or by the text encoders of the pipeline in ``folder``.

    On the meta device shapes alone, and nothing is loaded.

    Args:
        negative: prompt of the null condition; None: there is none.
        length: tokens of the longest encoder; None: as the pipeline does it.

    Raises:
        ConfigError: no pipeline of SD3 or FLUX; its encoders cannot be loaded, or fail.
    """
    name = _pipeline_name(folder)
    length = _LENGTHS[name] if length is None else length
    file = cache_folder() / "prompts" / f"{_key(folder, name, prompts, negative, length, dtype)}.safetensors"
    if file.is_file():
        return conditions_of(load_tensors(file, shapes_only=device.type == "meta")[0], str(file))
    if device.type == "meta":
        own: Any = network.config
        tokens = length + (_CLIP_TOKENS if name == "StableDiffusion3Pipeline" else 0)
        shapes = {PROMPTS: (tokens, own.joint_attention_dim), POOLED: (own.pooled_projection_dim,)}
        tensors = {
            name: torch.empty(len(prompts), *shape, device="meta", dtype=dtype) for name, shape in shapes.items()
        }
        if negative is not None:
            tensors |= {
                f"{NEGATIVE}{name}": torch.empty(1, *s, device="meta", dtype=dtype) for name, s in shapes.items()
            }
        return conditions_of(tensors, str(folder))
    _log.info(f"Encoding {len(prompts):,} prompts with the text encoders in {folder}, once, into {file}.")
    tensors = _encode(
        folder, name, network, [*prompts, *([] if negative is None else [negative])], length, dtype, device
    )
    if negative is not None:
        tensors |= {f"{NEGATIVE}{name}": rows[-1:] for name, rows in tensors.items()}
        tensors = {name: rows if name.startswith(NEGATIVE) else rows[:-1] for name, rows in tensors.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(file, {name: rows.clone() for name, rows in tensors.items()})
    return conditions_of(tensors, str(folder))


@torch.no_grad()
def _encode(
    folder: Path,
    name: str,
    network: nn.Module,
    prompts: list[str],
    length: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Tensor]:
    """(K, L, D) and (K, P) on the host, by the pipeline's ``encode_prompt``; its encoders are let go afterwards."""
    pipeline_class = diffusers_class(name, "teacher.prompts", "prompts")
    try:
        pipeline = pipeline_class.from_pretrained(
            folder, transformer=network, vae=None, local_files_only=True, use_safetensors=True, torch_dtype=dtype
        )
        encoders = [part for key, part in pipeline.components.items() if key.startswith("text_encoder")]
        for encoder in encoders:
            if encoder is not None:
                encoder.to(device).eval()
        found: list[tuple[Tensor, Tensor]] = []
        for first in range(0, len(prompts), _BATCH):
            some = prompts[first : first + _BATCH]
            if name == "FluxPipeline":
                embeddings, pooled, _ = pipeline.encode_prompt(some, None, device=device, max_sequence_length=length)
            else:
                embeddings, _, pooled, _ = pipeline.encode_prompt(
                    some, None, None, device=device, do_classifier_free_guidance=False, max_sequence_length=length
                )
            found.append((embeddings.cpu(), pooled.cpu()))
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, ImportError, AttributeError) as error:
        raise ConfigError(
            f"The text encoders in {folder} cannot encode prompts ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}). Expected a whole pipeline's folder, with model_index.json, its "
            "tokenizers and text encoders as .safetensors, and the extra `prompts` installed "
            "(pip install 'freeflow-distill[prompts]'); or encode them elsewhere and give teacher.embeddings."
        ) from error
    embeddings, pooled = (torch.cat(parts) for parts in zip(*found, strict=True))
    return {PROMPTS: embeddings, POOLED: pooled}


def _pipeline_name(folder: Path) -> str:
    try:
        name = str(json.loads((folder / "model_index.json").read_text("utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"teacher.prompts needs a whole pipeline in {folder}, with its text encoders ({error}). With a transformer "
            "alone, give teacher.embeddings."
        ) from None
    if name not in _LENGTHS:
        raise ConfigError(f"{folder} holds a {name}; prompts are encoded by {' or '.join(_LENGTHS)}.")
    return name


def _key(folder: Path, name: str, prompts: tuple[str, ...], negative: str | None, length: int, dtype: Any) -> str:
    """Of everything the embeddings depend on; the encoders' weights by size and time of change."""
    parts = [path for kind in ("text_encoder*", "tokenizer*") for path in sorted(folder.glob(f"{kind}/*"))]
    files = [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in parts if p.is_file()]
    text = json.dumps([str(folder.resolve()), name, prompts, negative, length, str(dtype), files])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
