"""What a diffusion transformer is made of, as plain validated values. Never imports torch."""

from __future__ import annotations

from typing import Any, Literal, Self, final

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from freeflow_core.config.component import Section
from freeflow_core.errors import CheckpointError, ConfigError

FAMILY = "diffusion-transformer"
"""Family of the tensors' names in a :class:`freeflow_core.types.NetworkState`."""

SizeName = Literal["S", "B", "L", "XL"]

SIZES: dict[str, dict[str, int]] = {
    "S": {"depth": 12, "width": 384, "num_heads": 6},
    "B": {"depth": 12, "width": 768, "num_heads": 12},
    "L": {"depth": 24, "width": 1024, "num_heads": 16},
    "XL": {"depth": 28, "width": 1152, "num_heads": 16},
}
"""The named sizes of DiT (Peebles & Xie 2022, table 1)."""


def named_heads(depth: int, width: int) -> int | None:
    """Attention heads of the named size with this depth and width, or None."""
    found = (size["num_heads"] for size in SIZES.values() if (size["depth"], size["width"]) == (depth, width))
    return next(found, None)


TimeDirection = Literal["data-at-0", "data-at-1"]
Sign = Literal["noise-minus-data", "data-minus-noise"]
Prediction = Literal["velocity", "noise"]


class StoredOptions(Section):
    """Base: options that are stored with weights."""

    @classmethod
    def from_stored(cls, values: Any) -> Self:
        """Raises :class:`CheckpointError` for values that are no such options."""
        try:
            return cls.model_validate(values)
        except (ValidationError, ConfigError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"The configuration stored with the weights does not describe a {cls.__name__} ({reason}). The file "
                "was edited, or written by another version of this plugin: export it again."
            ) from None


@final
class TransformerConfig(StoredOptions):
    """Constructor arguments of :class:`freeflow_transformers.network.DiffusionTransformer`; stored with its weights.

    The last three fields say what the network's numbers mean; its ``own_time`` and ``velocity`` convert them.

    Raises:
        ConfigError: numbers that do not go together, such as a width that is not a multiple of the heads.
    """

    sample_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(description="(C, H, W) of one state.")
    patch_size: PositiveInt = Field(description="Side of a patch; divides H and W.")
    width: PositiveInt = Field(description="Channels of a token; a multiple of 4 and of num_heads.")
    depth: PositiveInt = Field(description="Blocks.")
    num_heads: PositiveInt = Field(description="Attention heads.")
    mlp_ratio: PositiveFloat = Field(4.0, description="Hidden units of a block's MLP over its width.")
    num_classes: int = Field(0, ge=0, description="Classes; 0: unconditional, without a class embedding.")
    null_class: bool = Field(True, description="Whether the last row of the class embedding is the null class.")
    learn_sigma: bool = Field(False, description="2C output channels, of which the first C are the velocity.")
    jump: bool = Field(False, description="Takes the duration d = t - s of a jump as an input.")
    guidance: bool = Field(False, description="Takes the guidance weight as an input.")
    qk_norm: bool = Field(False, description="LayerNorm over each head's queries and keys.")
    time_direction: TimeDirection = Field("data-at-0", description="Its own time; data-at-1: it is fed 1 - t.")
    sign: Sign = Field("noise-minus-data", description="Direction of its velocity; data-minus-noise: it is negated.")
    prediction: Prediction = Field("velocity", description="What the first C channels are.")

    @model_validator(mode="after")
    def _check(self) -> TransformerConfig:
        _, height, width = self.sample_shape
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                f"Patches of {self.patch_size} do not tile states of {height} x {width}. "
                "Choose a patch_size that divides both sides."
            )
        if self.width % self.num_heads:
            raise ConfigError(
                f"A width of {self.width} does not split into {self.num_heads} heads. "
                "Choose a width that is a multiple of num_heads."
            )
        if self.width % 4:
            raise ConfigError(
                f"A width of {self.width} cannot hold the two-dimensional sine-cosine position embedding. "
                "Choose a multiple of 4."
            )
        return self

    @property
    def channels(self) -> int:
        return self.sample_shape[0]

    @property
    def out_channels(self) -> int:
        return self.channels * (2 if self.learn_sigma else 1)

    @property
    def has_null_class(self) -> bool:
        """Whether an unconditional velocity can be asked for beside a conditional one."""
        return self.num_classes > 0 and self.null_class

    @property
    def size(self) -> str | None:
        """The named size this depth, width and number of heads make, or None."""
        own = {name: getattr(self, name) for name in ("depth", "width", "num_heads")}
        return next((name for name, values in SIZES.items() if values == own), None)
