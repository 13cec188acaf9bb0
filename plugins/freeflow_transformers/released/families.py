"""What is known of each family of published checkpoints, and where they are. Never imports torch.

Sizes and digests are those the hosts themselves show for the file, or that several independent copies agree on; they
are left out where neither is the case. A file whose name could not be confirmed is found by a pattern in its
repository.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal, final

from freeflow_core.plugin import WeightFile
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
        learn_sigma: whether the output has 2C channels; None: the published ones do at 256 pixels, not at 512.
        ignored: first parts of tensor names that inference does not need.
    """

    name: FamilyName
    time_direction: TimeDirection
    sign: Sign
    prediction: Prediction
    guidance_channels: int | None
    learn_sigma: bool | None
    ignored: tuple[str, ...] = ()

    @property
    def convention(self) -> dict[str, str]:
        return {"time_direction": self.time_direction, "sign": self.sign, "prediction": self.prediction}


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("sit", "data-at-1", "data-minus-noise", "velocity", guidance_channels=3, learn_sigma=None),
        Family("sit-repa", "data-at-0", "noise-minus-data", "velocity", None, False, ignored=("projectors",)),
        # The step of DiT's schedule grows with the noise, so its data is at 0; sign means nothing for a noise.
        Family("dit", "data-at-0", "noise-minus-data", "noise", guidance_channels=3, learn_sigma=True),
    )
}


_SIT, _REPA = "nyu-visionx/SiT-collections", "https://github.com/sihyun-yu/REPA"
_FREEFLOW, _DMF = "nyu-visionx/FreeFlow", "kyungmnlee/DMF"


def _hub(name: str, summary: str, filename: str, repository: str, licence: str = "MIT", **known: Any) -> WeightFile:
    source = f"https://huggingface.co/{repository}"
    return WeightFile(name, summary, filename, repository=repository, licence=licence, source=source, **known)


def _dit(resolution: int, fid: str, **known: Any) -> WeightFile:
    file = f"DiT-XL-2-{resolution}x{resolution}.pt"
    return WeightFile(
        f"dit-xl-2-{resolution}",
        f"DiT-XL/2, ImageNet {resolution}, FID {fid} guided",
        file,
        url=f"https://dl.fbaipublicfiles.com/DiT/models/{file}",
        licence="CC BY-NC 4.0",
        source="https://github.com/facebookresearch/DiT",
        **known,
    )


PUBLISHED: tuple[WeightFile, ...] = (
    _hub(
        "sit-xl-2-256",
        "SiT-XL/2, ImageNet 256, FID 2.06 guided",
        "SiT-XL-2-256.pt",
        _SIT,
        size=2_700_608_707,
        sha256="e645b5cd82d1d645cfd9b7c96041b56b2a0aa61faed90c0869e79be02ab55aca",
    ),
    _hub("sit-l-2-256", "SiT-L/2, ImageNet 256, 800 000 steps", "SiT-L-2-256.pt", _SIT),
    _hub("sit-b-2-256", "SiT-B/2, ImageNet 256, 800 000 steps", "SiT-B-2-256.pt", _SIT),
    _hub("sit-s-2-256", "SiT-S/2, ImageNet 256, 800 000 steps", "SiT-S-2-256.pt", _SIT),
    # The authors say that it is there; its name is not confirmed.
    _hub("sit-xl-2-512", "SiT-XL/2, ImageNet 512", "SiT-XL-2-512.pt", _SIT, pattern=r"xl.*512"),
    WeightFile(
        "sit-repa-xl-2-256",
        "SiT-XL/2 trained with REPA, ImageNet 256, FID 1.42 guided",
        "SiT-XL-2-256-REPA.pt",
        url="https://www.dl.dropboxusercontent.com/scl/fi/cxedbs4da5ugjq5wg3zrg/last.pt"
        "?rlkey=8otgrdkno0nd89po3dpwngwcc&st=apcc645o&dl=0",
        licence="MIT",
        source=_REPA,
    ),
    _hub(
        "sit-repa-xl-2-512",
        "SiT-XL/2 trained with REPA, ImageNet 512, as provided with Decoupled MeanFlow",
        "sit_xl_2_repa_512.pt",
        _DMF,
        licence="",
        revision="4b040eb1ed1e3f9e1d01dd89d499f720296fba98",
    ),
    _dit(256, "2.27", size=2_700_611_775, sha256="9ec1876e4c03471bca126663a30e2d1b20610b6d2f87850a39a36f25cc685521"),
    _dit(512, "3.04"),
    _hub(
        "freeflow-xl-2-256",
        "FreeFlow one-step student of sit-repa-xl-2-256, FID 1.45",
        "freeflow-xl-2-256.pt",
        _FREEFLOW,
        pattern=r"^(?!.*sit(?!.*repa)).*256",  # the publisher's name for it is not confirmed, nor for the next
    ),
    _hub(
        "freeflow-sit-xl-2-256",
        "FreeFlow one-step student of sit-xl-2-256, FID 1.69",
        "freeflow-sit-xl-2-256.pt",
        _FREEFLOW,
        pattern=r"^(?!.*repa)(?=.*256).*sit",
    ),
    _hub(
        "freeflow-xl-2-512",
        "FreeFlow one-step student of SiT-XL/2 with REPA at 512 pixels, FID 1.49",
        "FreeFlow_512.pt",
        _FREEFLOW,
        revision="88a8120534b6514525a883cd2bff6931d396cce6",
        size=2_717_071_257,
        sha256="8551ca554818a46b5a8d79e1e23546d113240065041790a36ee53113dd2ad72f",
    ),
)


def published_names(family: str) -> list[str]:
    """Names of the published weights of one family, e.g. ``"sit-xl-2-256"`` of ``"sit"``."""
    return [file.name for file in PUBLISHED if re.fullmatch(rf"{family}-(s|b|l|xl)-\d-\d+", file.name)]
