"""Transformer blocks whose normalisation is modulated by the conditioning (adaLN-Zero, Peebles & Xie 2022)."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from freeflow_transformers.attention import Attention

_EPSILON = 1e-6


@final
class Block(nn.Module):
    """Attention, then an MLP, each between a modulated LayerNorm and a gate.

    Tokens ``x`` (N, T, width) and conditioning ``c`` (N, width) to tokens.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, qk_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPSILON, elementwise_affine=False)
        self.attn = Attention(width, num_heads, qk_norm)
        self.norm2 = nn.LayerNorm(width, eps=_EPSILON, elementwise_affine=False)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        modulation = self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=2)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = modulation
        x = x + gate_attention * self.attn(modulate(self.norm1(x), shift_attention, scale_attention))
        return x + gate_mlp * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


@final
class MLP(nn.Module):
    """Two layers with a tanh-approximated GELU, per token."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


@final
class FinalLayer(nn.Module):
    """Tokens (N, T, width) to the pixels of their patches (N, T, patch_size^2 * out_channels)."""

    def __init__(self, width: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=_EPSILON, elementwise_affine=False)
        self.linear = nn.Linear(width, patch_size**2 * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=2)
        out: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return out


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift for ``x`` (N, T, width), ``shift`` and ``scale`` (N, 1, width)."""
    return x * (1 + scale) + shift
