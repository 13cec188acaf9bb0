"""What is known of each family of published checkpoints. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from freeflow_transformers.architecture import Prediction, Sign, TimeDirection

FamilyName = Literal["sit", "sit-repa", "dit"]
StudentFamilyName = Literal["sit", "sit-repa"]
"""Families whose convention a student can have: those that predict a velocity."""

LATENT_CHANNELS = 4
LATENT_FACTOR = 8
"""All of them work on latents (4, resolution / 8, resolution / 8) of Stable Diffusion's autoencoder."""
LATENT_CODEC = "sd-vae"
"""Name of the codec for them."""
NUM_CLASSES = 1000
"""ImageNet's; the null class comes on top."""


@final
@dataclass(frozen=True)
class Family:
    """Conventions of one family.

    Args:
        name: also the name of the teacher.
        time_direction, sign, prediction: what its numbers mean, see :class:`TransformerConfig`.
        guidance_channels: its own sampler guides the first that many channels; None: all.
        learn_sigma: whether the output has 2C channels; None: both exist.
        ignored: first parts of tensor names that inference does not need.
    """

    name: FamilyName
    time_direction: TimeDirection
    sign: Sign
    prediction: Prediction
    guidance_channels: int | None
    learn_sigma: bool | None
    ignored: tuple[str, ...] = ()

    def default_learn_sigma(self, resolution: int) -> bool:
        """Whether the published network for images of that many pixels has 2C output channels."""
        return resolution == 256 if self.learn_sigma is None else self.learn_sigma


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("sit", "data-at-1", "data-minus-noise", "velocity", guidance_channels=3, learn_sigma=None),
        Family(
            "sit-repa",
            "data-at-0",
            "noise-minus-data",
            "velocity",
            guidance_channels=None,
            learn_sigma=False,
            ignored=("projectors",),
        ),
        # The step of DiT's schedule grows with the noise, so its data is at 0; sign means nothing for a noise.
        Family("dit", "data-at-0", "noise-minus-data", "noise", guidance_channels=3, learn_sigma=True),
    )
}


def weights_name(family: str, size: str, patch_size: int, resolution: int) -> str:
    """What published weights are called, e.g. ``"sit-repa-xl-2-256"``; not all of these names exist."""
    return f"{family}-{size.lower()}-{patch_size}-{resolution}"
