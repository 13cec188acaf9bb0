"""Multi-head self-attention."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


@final
class Attention(nn.Module):
    """Self-attention over tokens (N, T, width) with fused queries, keys and values.

    The kernel is left to ``scaled_dot_product_attention``: forward-mode differentiation must choose the math one.

    Args:
        width: channels, a multiple of ``num_heads``.
        num_heads: heads.
        qk_norm: LayerNorm, with affine, over each head's queries and keys (Dehghani et al. 2023).
    """

    def __init__(self, width: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // num_heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        num, tokens, width = x.shape
        heads = self.qkv(x).reshape(num, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)  # autocast runs LayerNorm in float32
        mixed = scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(num, tokens, width))
        return out
