"""A flow-matching transformer of diffusers from a local folder, with prompts, or with embeddings of them.

Nothing in the folder is executed, and nothing is fetched.
"""

import json
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import BuildContext, Teacher
from freeflow_core.torchvision_ops import diffusers_class
from freeflow_core.types import Condition
from freeflow_networks.calling import DTYPES, Conditions, KeepsDtype, read_embeddings
from freeflow_networks.config import DiffusersTeacherConfig
from freeflow_networks.prompts import POOLED, PROMPTS, encode_prompts, read_prompts

SUPPORTED = ("SD3Transformer2DModel", "FluxTransformer2DModel")
_NUM_STEPS = 1000
_DEFAULT_SIDE = 128


@final
class DiffusersTeacher(KeepsDtype, Teacher):
    """v(x_t, t, c) of SD3 (Esser et al. 2024) or FLUX: noise - data of the linear path at sigma = t.

    That is this project's own convention. SD3 is fed 1000 t; FLUX t, which it multiplies itself, and tokens of 2 x 2
    latents with their places. The prompts are the rows of a file of embeddings; prompt i is class i, and the file's
    negative row, where there is one, the null class K, so that students and evaluators of classes can follow.

    ``size`` is (height, width) of the latents; ``dtype`` what the network was asked to be, whatever the run's.

    Raises:
        ConfigError: embeddings or a size that the network does not take.
    """

    def __init__(
        self,
        network: nn.Module,
        conditions: Conditions,
        size: tuple[int, int],
        guidance_embedding: float | None = 3.5,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.keep_dtype(dtype, next(network.parameters()).dtype)
        config: Any = network.config
        self._is_flux = type(network).__name__ == "FluxTransformer2DModel"
        self._embeds_guidance = bool(self._is_flux and config.guidance_embeds)
        self._guidance = guidance_embedding
        channels = config.in_channels // 4 if self._is_flux else config.in_channels
        self.sample_shape = (channels, *size)
        self.num_classes = conditions.num_classes
        self.network = network.requires_grad_(False).eval()
        self.conditions = conditions
        _check_embeddings(conditions, config)
        patch_size, largest = (2, None) if self._is_flux else (config.patch_size, config.pos_embed_max_size)
        if any(side % patch_size for side in size) or (largest is not None and max(size) // patch_size > largest):
            limit = "" if largest is None else f" and at most {largest * patch_size}"
            raise ConfigError(f"teacher.latent_size={size} must be multiples of {patch_size}{limit} for this network.")

    @classmethod
    def from_config(cls, config: DiffusersTeacherConfig, context: BuildContext) -> Self:
        """Raises ``ConfigError`` and ``CheckpointError`` as the loading of either file does."""
        folder = transformer_folder(config.folder, config.subfolder)
        dtype = None if config.dtype is None else DTYPES[config.dtype]
        network = load_transformer(folder, dtype, shapes_only=context.device.type == "meta")
        prompts: tuple[str, ...] | None = None
        if config.embeddings is not None:
            conditions = read_embeddings(config.embeddings, expected=(PROMPTS, POOLED))
        else:
            assert config.prompts is not None  # its configuration asks for one of the two
            prompts = read_prompts(config.prompts)
            conditions = encode_prompts(
                config.folder,
                network,
                prompts,
                config.negative_prompt,
                config.prompt_length,
                dtype or torch.float32,
                context.device,
            )
        own: Any = network.config
        side = own.get("sample_size") or _DEFAULT_SIDE
        teacher = cls(network, conditions, config.latent_size or (side, side), config.guidance_embedding, dtype)
        teacher.class_names = prompts
        teacher.codec = "diffusers-vae" if (config.folder / "vae" / "config.json").is_file() else None
        teacher.provenance = f"{type(network).__name__} from {folder}, {conditions.num_classes} prompts"
        return teacher.to(context.device)

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self._ask(x_t, t, condition, None)

    def guided_velocity(self, x_t: Tensor, t: Tensor, condition: Condition, weight: Tensor) -> Tensor:
        """By the negative row; a guidance-distilled network whose ``guidance_embedding`` is None by its own input."""
        if self._embeds_guidance and self._guidance is None:
            return self._ask(x_t, t, condition, weight)
        return super().guided_velocity(x_t, t, condition, weight)

    def _ask(self, x_t: Tensor, t: Tensor, condition: Condition, weight: Tensor | None) -> Tensor:
        if not isinstance(condition, Tensor):
            raise ConfigError("This teacher is conditioned on prompts: its condition is their numbers (N,), not None.")
        dtype = next(self.network.parameters()).dtype
        x, time = x_t.to(dtype), t.to(device=x_t.device, dtype=dtype)
        found = self.conditions.rows(condition, x.device, dtype)
        asked: dict[str, Tensor | None] = {
            "hidden_states": x,
            "timestep": time * _NUM_STEPS,
            "encoder_hidden_states": found[PROMPTS],
            "pooled_projections": found[POOLED],
        }
        if self._is_flux:
            height, width = x.shape[2:]
            fixed = torch.full_like(time, 1.0 if self._guidance is None else self._guidance)
            guidance = fixed if weight is None else weight.to(fixed)
            asked |= {
                "hidden_states": pack(x),
                "timestep": time,
                "guidance": guidance if self._embeds_guidance else None,
                "txt_ids": torch.zeros(found[PROMPTS].shape[1], 3, device=x.device, dtype=dtype),
                "img_ids": image_places(height, width, x),
            }
        answer: Tensor = self.network(**asked, return_dict=False)[0]
        return (unpack(answer, height, width) if self._is_flux else answer).to(x_t.dtype)

    def student_copy(self, *, share_weights: bool) -> Self:
        copied = super().student_copy(share_weights=share_weights)
        if not share_weights:
            copied._keeps_dtype = False
            copied.to(torch.promote_types(next(copied.parameters()).dtype, torch.float32))
        return copied

    @property
    def own_network(self) -> nn.Module:
        return self.network

    def null_condition(self, condition: Condition) -> Condition:
        assert isinstance(condition, Tensor)
        return self.conditions.null(condition)


def _check_embeddings(conditions: Conditions, config: Any) -> None:
    widths = {PROMPTS: (3, config.joint_attention_dim), POOLED: (2, config.pooled_projection_dim)}
    for name, (dimensions, width) in widths.items():
        table = conditions.get_buffer(f"table_{name}")
        if table.ndim != dimensions or table.shape[-1] != width:
            expected = "(K, L, {})" if dimensions == 3 else "(K, {})"
            raise ConfigError(
                f"The embeddings {name} have shape {tuple(table.shape)}; this transformer takes "
                f"{expected.format(width)}. They must come from its own text encoders (`pipeline.encode_prompt`)."
            )


# FLUX works on tokens: 2 x 2 latents each, with their place in the picture.


def pack(latents: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H/2 W/2, 4C), for even H and W: channels before places in a token."""
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`pack`: (N, H/2 W/2, 4C) to (N, C, H, W)."""
    return pixel_shuffle(tokens.transpose(1, 2).reshape(len(tokens), -1, height // 2, width // 2), 2)


def image_places(height: int, width: int, like: Tensor) -> Tensor:
    """(H/2 W/2, 3): 0, row and column of each token, which its rotary embedding turns by."""
    places = torch.meshgrid(torch.arange(1), torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    return torch.stack(places, -1).reshape(-1, 3).to(like)


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
    """The transformer, frozen, on the CPU: config.json beside safetensors, in one file or in shards with their index.

    ``dtype`` None is as stored. With ``shapes_only`` no weights are read: it is on the meta device, None then float32.

    Raises:
        ConfigError: diffusers is not installed, or the folder holds another kind of network.
        CheckpointError: weights that are missing, damaged, or do not fit config.json.
    """
    name = _class_name(folder / "config.json")
    model_class = diffusers_class(name, "The teacher diffusers-transformer", "diffusers")
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
        raise ConfigError(f"{file} does not say what it describes ({error}); expected one by diffusers.") from error
    if name not in SUPPORTED:
        raise ConfigError(
            f"{file} describes a {name}; the teacher diffusers-transformer reads {' and '.join(SUPPORTED)}. Another "
            "network can be a teacher through `callable`, with its convention as options."
        )
    return name
