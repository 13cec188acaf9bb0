"""The diffusion transformer."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from freeflow_core.errors import ConfigError
from freeflow_core.types import Condition
from freeflow_transformers.architecture import TransformerConfig
from freeflow_transformers.blocks import Block, FinalLayer
from freeflow_transformers.embeddings import LabelEmbedder, PatchEmbedder, ScalarEmbedder, position_embedding
from freeflow_transformers.initialisation import initialise_weights


@final
class DiffusionTransformer(nn.Module):
    """SiT / DiT with two further inputs, both optional: the duration of a jump and the guidance weight.

    Peebles & Xie 2022 (arXiv 2212.09748), Ma et al. 2024 (arXiv 2401.08740), whose parameter names it keeps; the
    further inputs as in FreeFlow (Tong et al. 2025, arXiv 2511.19428). Their embedders end in a zero layer, so a
    network that takes all other weights from a velocity network answers exactly as that one at every duration and
    guidance weight.

    Args:
        config: shape, size and inputs.
        generator: host generator of the starting weights; None: one seeded with 0. Global state is not touched.
        device: ``"meta"`` for the shapes alone, without memory, weights or the time to draw them.
    """

    pos_embed: Tensor

    def __init__(
        self,
        config: TransformerConfig,
        generator: torch.Generator | None = None,
        *,
        device: Literal["cpu", "meta"] = "cpu",
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        _, height, width = config.sample_shape
        self._grid = (height // config.patch_size, width // config.patch_size)
        # Built without memory, so that no constructor draws weights of its own from the global generator.
        with torch.device("meta"):
            self.x_embedder = PatchEmbedder(config.channels, config.patch_size, config.width)
            self.t_embedder = ScalarEmbedder(config.width)
            self.y_embedder = (
                LabelEmbedder(config.num_classes, config.null_class, config.width) if config.num_classes else None
            )
            self.dt_embedder = ScalarEmbedder(config.width) if config.jump else None
            self.gw_embedder = ScalarEmbedder(config.width) if config.guidance else None
            self.blocks = nn.ModuleList(
                Block(config.width, config.num_heads, config.mlp_ratio, config.qk_norm) for _ in range(config.depth)
            )
            self.final_layer = FinalLayer(config.width, config.patch_size, config.out_channels)
        self.to_empty(device=device)
        self.register_buffer("pos_embed", position_embedding(*self._grid, config.width).to(device))
        if device != "meta":
            initialise_weights(self, generator or torch.Generator().manual_seed(0))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        duration: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Raw output (N, out_channels, H, W) in the dtype of ``x_t``; its first C channels are the velocity.

        Args:
            x_t: (N, C, H, W) states.
            t: (N,) times in [0, 1], on any device; so are ``duration`` and ``guidance``.
            condition: (N,) integer labels in [0, num_classes), or num_classes for the null class; None when the
                network is unconditional.
            duration: (N,) d = t - s in [0, 1]; given exactly when ``config.jump``.
            guidance: (N,) weights, 1 for none; given exactly when ``config.guidance``.

        Raises:
            ConfigError: a condition the network cannot take, or none where it needs one.
            ValueError: a state of the wrong shape, or a missing or superfluous input.
        """
        if tuple(x_t.shape[1:]) != self.config.sample_shape:
            raise ValueError(f"expected states (N, {self.config.sample_shape}), got {tuple(x_t.shape)}")
        c = self.t_embedder(t)
        for name, embedder, values in (
            ("duration", self.dt_embedder, duration),
            ("guidance", self.gw_embedder, guidance),
        ):
            if (embedder is None) != (values is None):
                raise ValueError(f"the network {'has no' if embedder is None else 'needs a'} {name} input")
            if embedder is not None:
                c = c + embedder(values)
        labels = self._labels(condition)
        if self.y_embedder is not None:
            c = c + self.y_embedder(labels)
        tokens = self.x_embedder(x_t.to(self.pos_embed.dtype)) + self.pos_embed
        for block in self.blocks:
            tokens = self._run(block, tokens, c)
        return self._join_patches(self.final_layer(tokens, c)).to(x_t.dtype)

    def _run(self, block: nn.Module, tokens: Tensor, c: Tensor) -> Tensor:
        """One block; with ``checkpoint_activations``, a gradient pass keeps its inputs alone and runs it again later.

        Passes without gradient keep nothing anyway, and forward mode, which runs among them, knows no recomputation.
        """
        if self.checkpoint_activations and torch.is_grad_enabled():
            # No block draws random numbers, so there is no generator state to restore.
            again: Tensor = checkpoint(block, tokens, c, use_reentrant=False, preserve_rng_state=False)
            return again
        out: Tensor = block(tokens, c)
        return out

    def _labels(self, condition: Condition) -> Tensor | None:
        if self.y_embedder is None:
            if condition is not None:
                raise ConfigError(
                    "This transformer is unconditional but was given a condition. Use a network with num_classes, or a "
                    "teacher and source without labels."
                )
            return None
        if not isinstance(condition, Tensor) or condition.ndim != 1 or condition.is_floating_point():
            raise ConfigError(
                f"This transformer is conditioned on {self.config.num_classes} classes: expected one integer label per "
                f"sample, shape (N,), got {_describe(condition)}."
            )
        return condition

    def _join_patches(self, patches: Tensor) -> Tensor:
        """(N, T, p * p * out_channels) to (N, out_channels, H, W)."""
        rows, columns = self._grid
        size, channels = self.config.patch_size, self.config.out_channels
        split = patches.reshape(-1, rows, columns, size, size, channels)
        return split.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, rows * size, columns * size)


def _describe(condition: Condition) -> str:
    if isinstance(condition, Tensor):
        return f"a {condition.dtype} tensor {tuple(condition.shape)}"
    return "none" if condition is None else f"a {type(condition).__name__}"
