"""The diffusion transformer: embeddings, blocks whose normalisation is modulated by them (adaLN-Zero), final layer."""

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from freeflow_core.errors import ConfigError
from freeflow_core.types import Condition, describe
from freeflow_transformers.architecture import TransformerConfig

NUM_FEATURES = 256
_MAX_PERIOD = 10_000.0
_EPSILON = 1e-6
_EMBEDDER_STD = 0.02
_MODULATION_STD = 0.1
_EXTRA_INPUTS = ("dt_embedder", "gw_embedder")


@final
class DiffusionTransformer(nn.Module):
    """SiT / DiT with two further inputs, both optional: the duration of a jump and the guidance weight.

    Peebles & Xie 2022, Ma et al. 2024, whose parameter names it keeps; the further inputs as in FreeFlow (Tong et al.
    2025). Their embedders end in a zero layer, so a network that takes all other weights from a velocity network
    answers exactly as that one. Released networks differ in time and sign: :meth:`own_time` and :meth:`velocity`.

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
        self._channels, self._out_channels = config.channels, config.out_channels
        # Built without memory, so that no constructor draws weights of its own from the global generator.
        with torch.device("meta"):
            patches = nn.Conv2d(config.channels, config.width, config.patch_size, config.patch_size)
            self.x_embedder = nn.Sequential(OrderedDict(proj=patches))
            self.t_embedder = ScalarEmbedder(config.width)
            rows = torch.empty(config.num_classes + int(config.null_class), config.width)  # the null class last
            # Not by its constructor: drawing normals without memory loads torch's compiler, a second and more.
            table = nn.Embedding.from_pretrained(rows, freeze=False)  # type: ignore[no-untyped-call]
            self.y_embedder = nn.Sequential(OrderedDict(embedding_table=table)) if config.num_classes else None
            self.dt_embedder = ScalarEmbedder(config.width) if config.jump else None
            self.gw_embedder = ScalarEmbedder(config.width) if config.guidance else None
            self.blocks = nn.ModuleList(
                Block(config.width, config.num_heads, config.mlp_ratio, config.qk_norm) for _ in range(config.depth)
            )
            self.final_layer = FinalLayer(config.width, config.patch_size, config.out_channels)
        allocate(self, device)
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
        if self.y_embedder is not None and labels is not None:
            c = c + self.y_embedder(labels.to(self.pos_embed.device, non_blocking=True))
        patches = self.x_embedder(x_t.to(self.pos_embed.dtype))
        # (N, T, width), row by row, in memory too: blocks would keep a convolution's order, and copy at every product.
        tokens = patches.flatten(2).transpose(1, 2).contiguous() + self.pos_embed
        for block in self.blocks:
            tokens = self._run(block, tokens, c)
        return self._join_patches(self.final_layer(tokens, c)).to(x_t.dtype)

    def own_time(self, t: Tensor) -> Tensor:
        """What the network is fed for times ``t`` (N,): t itself, or 1 - t where its data is at 1."""
        return 1 - t if self.config.time_direction == "data-at-1" else t

    def velocity(self, output: Tensor) -> Tensor:
        """noise - data (N, C, H, W), or a mean of it, of the raw output (N, C or 2C, H, W), negated where needed."""
        first = output[:, : self._channels]
        return -first if self.config.sign == "data-minus-noise" else first

    def _run(self, block: nn.Module, tokens: Tensor, c: Tensor) -> Tensor:
        # Passes without gradient keep nothing anyway; forward mode, which runs among them, knows no recomputation.
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
                f"sample, shape (N,), got {describe(condition)}."
            )
        return condition

    def _join_patches(self, patches: Tensor) -> Tensor:
        """(N, T, p * p * out_channels) to (N, out_channels, H, W)."""
        rows, columns = self._grid
        size, channels = self.config.patch_size, self._out_channels
        split = patches.reshape(-1, rows, columns, size, size, channels)
        return split.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, rows * size, columns * size)


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
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, hidden), act=nn.GELU("tanh"), fc2=nn.Linear(hidden, width))
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        modulation = self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=2)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = modulation
        x = x + gate_attention * self.attn(modulate(self.norm1(x), shift_attention, scale_attention))
        return x + gate_mlp * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


@final
class Attention(nn.Module):
    """Self-attention over tokens (N, T, width) with fused queries, keys and values.

    ``qk_norm`` is a LayerNorm, with affine, over each head's queries and keys (Dehghani et al. 2023). The kernel is
    left to ``scaled_dot_product_attention``: forward-mode differentiation must choose the math one.
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


@final
class ScalarEmbedder(nn.Module):
    """A number per sample (N,), on any device, as (N, width): sinusoidal features and a two-layer MLP.

    Without the factor 1000 of discrete-time models and without autocast, so that finite differences can resolve it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(NUM_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: Tensor) -> Tensor:
        weight = next(self.parameters())
        dtype = torch.float64 if weight.dtype is torch.float64 else torch.float32
        values = values.to(device=weight.device, dtype=dtype, non_blocking=True)
        with torch.autocast(weight.device.type, enabled=False):
            embedded: Tensor = self.mlp(sinusoidal_features(values).to(weight.dtype))
        return embedded


def sinusoidal_features(values: Tensor, num_features: int = NUM_FEATURES) -> Tensor:
    """(N, num_features) of ``values`` v (N,): cos, then sin, of v exp(-ln(10000) i / half), in their dtype."""
    half = num_features // 2
    index = torch.arange(half, device=values.device, dtype=values.dtype)
    angles = torch.outer(values, torch.exp(-math.log(_MAX_PERIOD) / half * index))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def position_embedding(rows: int, columns: int, width: int) -> Tensor:
    """(1, rows * columns, width) float32: half the channels encode the column, half the row, in the order of DiT.

    Each half is sin, then cos, of p / 10000^(i / (width / 4)) (Vaswani et al. 2017, section 3.5).
    """
    frequencies = _MAX_PERIOD ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    halves = []
    for place in (column, row):
        angles = torch.outer(place.flatten(), frequencies)
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).unsqueeze(0).float()


def allocate(network: nn.Module, device: torch.device | str) -> None:
    """Give tensors of the meta device memory, without values.

    As ``nn.Module.to_empty`` does, whose way there loads sympy: a quarter of a second of every start.
    """
    network._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))  # type: ignore[no-untyped-call]


@torch.no_grad()
def initialise_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Fill every parameter, in order of construction.

    Xavier-uniform linear layers and patches with zero biases; normal (0.02) label and scalar embedders; zero modulation
    (adaLN-Zero, Peebles & Xie 2022, section 3.2) and output layer; zero last layer of the inputs that a velocity
    network lacks.
    """
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=_EMBEDDER_STD, generator=generator)
    for module in network.modules():
        if isinstance(module, ScalarEmbedder):
            for layer in _linear_layers(module):
                nn.init.normal_(layer.weight, std=_EMBEDDER_STD, generator=generator)
    for layer, _ in _zero_layers(network):
        nn.init.zeros_(layer.weight)


@torch.no_grad()
def fill_with_random_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Replace the zero layers of fresh weights, so that every input matters and outputs are of order one.

    It makes no useful network, but one that costs what a trained one costs and whose outputs are not all zero.
    """
    for layer, std in _zero_layers(network):
        nn.init.normal_(layer.weight, std=std, generator=generator)


def _zero_layers(network: nn.Module) -> Iterator[tuple[nn.Linear, float]]:
    """The layers that begin at zero, in order of construction, and the deviation that makes them of order one."""
    for name, module in network.named_modules():
        if isinstance(module, (Block, FinalLayer)):
            yield _linear_layers(module.adaLN_modulation)[0], _MODULATION_STD
        if isinstance(module, FinalLayer):
            yield module.linear, module.linear.in_features**-0.5
        if isinstance(module, ScalarEmbedder) and name in _EXTRA_INPUTS:
            yield _linear_layers(module)[-1], _EMBEDDER_STD


def _linear_layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
