"""The transformer of a one-step student, as diffusers loads it: torch and diffusers, without freeflow."""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class FreeFlowTransformer2DModel(ModelMixin, ConfigMixin):
    """The mean velocity u of a jump from time t to s, with time 1 for noise and 0 for data: x_s = x_t - (t - s) u.

    SiT / DiT (Ma et al. 2024, Peebles & Xie 2022) with the duration t - s and the guidance weight as inputs (Tong et
    al. 2025). Arguments are those of ``config.json``.
    """

    @register_to_config
    def __init__(
        self,
        sample_shape: list[int],
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        null_class: bool = True,
        learn_sigma: bool = False,
        guidance: bool = False,
        qk_norm: bool = False,
        time_direction: str = "data-at-0",
        sign: str = "noise-minus-data",
    ) -> None:
        super().__init__()
        channels, height, image_width = sample_shape
        self._grid = (height // patch_size, image_width // patch_size)
        self._channels, self._patch_size = channels, patch_size
        self._out_channels = channels * (2 if learn_sigma else 1)
        self._time_from_data, self._sign = time_direction == "data-at-1", -1 if sign == "data-minus-noise" else 1
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch_size, patch_size)})
        self.register_buffer("pos_embed", torch.zeros(1, self._grid[0] * self._grid[1], width))
        self.t_embedder, self.dt_embedder = ScalarEmbedder(width), ScalarEmbedder(width)
        self.gw_embedder = ScalarEmbedder(width) if guidance else None
        table = nn.Embedding(num_classes + null_class, width) if num_classes else None
        self.y_embedder = nn.ModuleDict({"embedding_table": table}) if table is not None else None
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio, qk_norm) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch_size**2 * self._out_channels)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        timestep_end: Tensor,
        class_labels: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """u (N, C, H, W) at states (N, C, H, W), times t and s (N,), classes (N,), guidance weights (N,); 1: none."""
        dtype = self.pos_embed.dtype
        condition = self.t_embedder(1 - timestep if self._time_from_data else timestep)
        condition = condition + self.dt_embedder(timestep - timestep_end)
        if self.gw_embedder is not None:
            condition = condition + self.gw_embedder(torch.ones_like(timestep) if guidance is None else guidance)
        if self.y_embedder is not None:
            if class_labels is None:
                raise ValueError("This transformer is class-conditional: give class_labels, one integer a sample.")
            condition = condition + self.y_embedder["embedding_table"](class_labels)
        tokens = self.x_embedder["proj"](hidden_states.to(dtype)).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, condition)
        patches = self.final_layer(tokens, condition)
        rows, columns, size = *self._grid, self._patch_size
        split = patches.reshape(-1, rows, columns, size, size, self._out_channels).permute(0, 5, 1, 3, 2, 4)
        output = split.reshape(-1, self._out_channels, rows * size, columns * size)
        return self._sign * output[:, : self._channels].to(hidden_states.dtype)


class ScalarEmbedder(nn.Module):
    """Numbers (N,) as (N, width)."""

    def __init__(self, width: int, num_features: int = 256) -> None:
        super().__init__()
        self._half = num_features // 2
        self.mlp = nn.Sequential(nn.Linear(num_features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: Tensor) -> Tensor:
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        index = torch.arange(self._half, device=values.device, dtype=values.dtype)
        angles = torch.outer(values, torch.exp(-math.log(10_000.0) / self._half * index))
        features = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.mlp(features.to(next(self.parameters()).dtype))


class Attention(nn.Module):
    """Self-attention over tokens (N, T, width)."""

    def __init__(self, width: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self._num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(width // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // num_heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        num, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(num, tokens, 3, self._num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(mixed.transpose(1, 2).reshape(num, tokens, width))


class Block(nn.Module):
    """Attention and an MLP, each modulated and gated by the condition (N, width): adaLN-Zero."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, qk_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, num_heads, qk_norm)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        hidden = int(width * mlp_ratio)
        fc1, fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.mlp = nn.ModuleDict({"fc1": fc1, "fc2": fc2})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        modulation = self.adaLN_modulation(condition).unsqueeze(1).chunk(6, dim=2)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation
        x = x + gate_1 * self.attn(self.norm1(x) * (1 + scale_1) + shift_1)
        hidden = self.mlp["fc1"](self.norm2(x) * (1 + scale_2) + shift_2)
        return x + gate_2 * self.mlp["fc2"](nn.functional.gelu(hidden, approximate="tanh"))


class FinalLayer(nn.Module):
    """Tokens (N, T, width) to the pixels of their patches."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, num_outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).unsqueeze(1).chunk(2, dim=2)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)
