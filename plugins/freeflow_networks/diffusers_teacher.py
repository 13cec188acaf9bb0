"""A flow-matching transformer of diffusers, with prompts given as embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, Teacher
from freeflow_core.types import Condition
from freeflow_networks.calling import DTYPES, keeps_dtype
from freeflow_networks.conditions import Conditions, read_embeddings
from freeflow_networks.config import DiffusersTeacherConfig
from freeflow_networks.diffusers_loading import load_transformer, transformer_folder
from freeflow_networks.packing import image_places, pack, unpack

PROMPTS, POOLED = "prompt_embeds", "pooled_prompt_embeds"
_NUM_STEPS = 1000
_DEFAULT_SIDE = 128


@final
class DiffusersTeacher(Teacher):
    """v(x_t, t, c) of SD3 (Esser et al. 2024, arXiv 2403.03206) or FLUX: noise - data of the linear path at sigma = t.

    That is this project's own convention. SD3 is fed 1000 t; FLUX t, which it multiplies itself, and tokens of 2 x 2
    latents with their places. The prompts are the rows of a file of embeddings; prompt i is class i, and the file's
    negative row, where there is one, the null class K, so that students and evaluators of classes can follow.

    Args:
        network: one of diffusers' two classes, frozen here.
        conditions: ``prompt_embeds`` and ``pooled_prompt_embeds``.
        size: height and width of the latents.
        guidance_embedding: what a guidance-distilled FLUX is fed; others take none.
        dtype: what the network was asked to be, whatever the run's precision; None: 16 bits stay so all the same.

    Raises:
        ConfigError: embeddings or a size that the network does not take.
    """

    def __init__(
        self,
        network: nn.Module,
        conditions: Conditions,
        size: tuple[int, int],
        guidance_embedding: float = 3.5,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._keeps_dtype = keeps_dtype(dtype, next(network.parameters()).dtype)
        config: Any = network.config
        self._is_flux = type(network).__name__ == "FluxTransformer2DModel"
        self._guidance = guidance_embedding if self._is_flux and config.guidance_embeds else None
        channels = config.in_channels // 4 if self._is_flux else config.in_channels
        self.sample_shape = (channels, *size)
        self.num_classes = conditions.num_classes
        self.network = network.requires_grad_(False).eval()
        self.conditions = conditions
        _check_embeddings(conditions, config)
        _check_size(
            size, 2 if self._is_flux else config.patch_size, None if self._is_flux else config.pos_embed_max_size
        )

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        """Raises ``ConfigError`` and ``CheckpointError`` as the loading of either file does."""
        assert isinstance(config, DiffusersTeacherConfig)
        folder = transformer_folder(config.folder, config.subfolder)
        conditions = read_embeddings(config.embeddings, expected=(PROMPTS, POOLED))
        dtype = None if config.dtype is None else DTYPES[config.dtype]
        network = load_transformer(folder, dtype, shapes_only=context.device.type == "meta")
        own: Any = network.config
        side = own.get("sample_size") or _DEFAULT_SIDE
        teacher = cls(network, conditions, config.latent_size or (side, side), config.guidance_embedding, dtype)
        teacher.provenance = f"{type(network).__name__} from {folder}, {conditions.num_classes} prompts"
        return teacher.to(context.device)

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        if not isinstance(condition, Tensor):
            raise ConfigError("This teacher is conditioned on prompts: its condition is their numbers (N,), not None.")
        dtype = next(self.network.parameters()).dtype
        x = x_t.to(dtype)
        found = self.conditions.rows(condition, x.device, dtype)
        time = t.to(device=x.device, dtype=dtype)
        answer = (self._flux if self._is_flux else self._sd3)(x, time, found[PROMPTS], found[POOLED])
        return answer.to(x_t.dtype)

    def null_condition(self, condition: Condition) -> Condition:
        assert isinstance(condition, Tensor)
        return self.conditions.null(condition)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move, but keep a dtype that was asked for, and 16 bits in a run of 32."""
        if not self._keeps_dtype:
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), recurse)  # type: ignore[no-untyped-call]

    def _sd3(self, x: Tensor, t: Tensor, prompts: Tensor, pooled: Tensor) -> Tensor:
        answer: Tensor = self.network(
            hidden_states=x,
            timestep=t * _NUM_STEPS,
            encoder_hidden_states=prompts,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        return answer

    def _flux(self, x: Tensor, t: Tensor, prompts: Tensor, pooled: Tensor) -> Tensor:
        height, width = x.shape[2:]
        guidance = None if self._guidance is None else torch.full_like(t, self._guidance)
        answer: Tensor = self.network(
            hidden_states=pack(x),
            timestep=t,
            guidance=guidance,
            encoder_hidden_states=prompts,
            pooled_projections=pooled,
            txt_ids=torch.zeros(prompts.shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=image_places(height, width, x),
            return_dict=False,
        )[0]
        return unpack(answer, height, width)


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


def _check_size(size: tuple[int, int], patch_size: int, largest: int | None) -> None:
    if any(side % patch_size for side in size) or (largest is not None and max(size) // patch_size > largest):
        limit = "" if largest is None else f" and at most {largest * patch_size}"
        raise ConfigError(
            f"teacher.latent_size={size} must be of multiples of {patch_size}{limit} for this transformer."
        )
