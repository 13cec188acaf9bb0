"""Options of the transformer's components. Never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from freeflow_core.config import ComponentConfig
from freeflow_transformers.architecture import SIZES


class TransformerOptions(ComponentConfig):
    """The backbone. Every null means: as the teacher, when it is a transformer; else the default named."""

    size: Literal["S", "B", "L", "XL"] | None = Field(
        None, description="Named size: S 12x384x6, B 12x768x12, L 24x1024x16, XL 28x1152x16 (depth x width x heads)."
    )
    depth: PositiveInt | None = Field(None, description="Blocks; null: as the teacher, else 4.")
    width: PositiveInt | None = Field(
        None, description="Channels of a token, a multiple of 4 and of num_heads; null: as the teacher, else 128."
    )
    num_heads: PositiveInt | None = Field(None, description="Attention heads; null: as the teacher, else 4.")
    patch_size: PositiveInt | None = Field(
        None,
        description="Side of a patch, a divisor of both sides of a state; null: as the teacher, else the smallest from "
        "2 up that gives at most 256 tokens.",
    )
    mlp_ratio: PositiveFloat | None = Field(
        None, description="Hidden units of a block's MLP over its width; null: as the teacher, else 4."
    )
    qk_norm: bool | None = Field(None, description="LayerNorm over queries and keys; null: as the teacher, else false.")
    sample_shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        None, description="(C, H, W) of one state; null: the teacher's, else the source's images. Set it for latents."
    )
    initialise: Literal["teacher", "random"] = Field(
        "teacher",
        description="teacher: start from its weights when there is a teacher; random: a fresh network, of any size.",
    )

    @model_validator(mode="after")
    def _check_size(self) -> TransformerOptions:
        given = [name for name in ("depth", "width", "num_heads") if getattr(self, name) is not None]
        if self.size is not None and given:
            raise ValueError(
                f"size={self.size} already sets depth, width and num_heads ({SIZES[self.size]}); "
                f"give either size or {', '.join(given)}"
            )
        return self


class FlowMapTransformerConfig(TransformerOptions):
    """Options of the student ``transformer``."""

    guidance: bool | None = Field(
        None,
        description="Take the guidance weight as an input; null: when there are classes to be guided by. Without it "
        "the student knows only the weight it was trained at.",
    )


class VelocityTransformerConfig(TransformerOptions):
    """Options of the student ``velocity-transformer``."""

    num_classes: int | None = Field(
        None, ge=0, description="Classes; 0: unconditional, labels are ignored; null: the teacher's, else the source's."
    )


class SiTTeacherConfig(ComponentConfig):
    """Options of the teacher ``sit``."""

    checkpoint: Path = Field(description="Weights written by `freeflow pretrain` (.safetensors).")


class DigitsTeacherConfig(ComponentConfig):
    """Options of the teacher ``digits``."""

    checkpoint: Path | None = Field(
        None, description="Other weights to use, written by `freeflow pretrain`; null: the shipped ones."
    )
