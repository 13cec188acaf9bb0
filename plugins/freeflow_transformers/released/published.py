"""Where the published checkpoints are. Never imports torch.

Sizes and digests are those the hosts themselves show for the file, or that several independent copies agree on; they
are left out where neither is the case. A file whose name could not be confirmed is found by a pattern in its
repository.
"""

from __future__ import annotations

import re

from freeflow_core.plugin import WeightFile

_SIT = "https://huggingface.co/nyu-visionx/SiT-collections"
_FREEFLOW_REPOSITORY = "nyu-visionx/FreeFlow"
_FREEFLOW = f"https://huggingface.co/{_FREEFLOW_REPOSITORY}"
_DIT_LICENCE = "CC BY-NC 4.0"


def _sit(size: str, summary: str, *, num_bytes: int | None = None, sha256: str | None = None) -> WeightFile:
    return WeightFile(
        name=f"sit-{size.lower()}-2-256",
        summary=summary,
        filename=f"SiT-{size}-2-256.pt",
        repository="nyu-visionx/SiT-collections",
        size=num_bytes,
        sha256=sha256,
        licence="MIT",
        source=_SIT,
    )


PUBLISHED: tuple[WeightFile, ...] = (
    _sit(
        "XL",
        "SiT-XL/2, ImageNet 256, FID 2.06 guided",
        num_bytes=2_700_608_707,
        sha256="e645b5cd82d1d645cfd9b7c96041b56b2a0aa61faed90c0869e79be02ab55aca",
    ),
    _sit("L", "SiT-L/2, ImageNet 256, 800 000 steps"),
    _sit("B", "SiT-B/2, ImageNet 256, 800 000 steps"),
    _sit("S", "SiT-S/2, ImageNet 256, 800 000 steps"),
    WeightFile(
        name="sit-xl-2-512",
        summary="SiT-XL/2, ImageNet 512",
        filename="SiT-XL-2-512.pt",
        repository="nyu-visionx/SiT-collections",
        pattern=r"xl.*512",  # the authors say that it is there; its name is not confirmed
        licence="MIT",
        source=_SIT,
    ),
    WeightFile(
        name="sit-repa-xl-2-256",
        summary="SiT-XL/2 trained with REPA, ImageNet 256, FID 1.42 guided",
        filename="SiT-XL-2-256-REPA.pt",
        url="https://www.dl.dropboxusercontent.com/scl/fi/cxedbs4da5ugjq5wg3zrg/last.pt"
        "?rlkey=8otgrdkno0nd89po3dpwngwcc&st=apcc645o&dl=0",
        licence="MIT",
        source="https://github.com/sihyun-yu/REPA",
    ),
    WeightFile(
        name="sit-repa-xl-2-512",
        summary="SiT-XL/2 trained with REPA, ImageNet 512, as provided with Decoupled MeanFlow",
        filename="sit_xl_2_repa_512.pt",
        repository="kyungmnlee/DMF",
        revision="4b040eb1ed1e3f9e1d01dd89d499f720296fba98",
        source="https://huggingface.co/kyungmnlee/DMF",
    ),
    WeightFile(
        name="dit-xl-2-256",
        summary="DiT-XL/2, ImageNet 256, FID 2.27 guided",
        filename="DiT-XL-2-256x256.pt",
        url="https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt",
        size=2_700_611_775,
        sha256="9ec1876e4c03471bca126663a30e2d1b20610b6d2f87850a39a36f25cc685521",
        licence=_DIT_LICENCE,
        source="https://github.com/facebookresearch/DiT",
    ),
    WeightFile(
        name="dit-xl-2-512",
        summary="DiT-XL/2, ImageNet 512, FID 3.04 guided",
        filename="DiT-XL-2-512x512.pt",
        url="https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-512x512.pt",
        licence=_DIT_LICENCE,
        source="https://github.com/facebookresearch/DiT",
    ),
    WeightFile(
        name="freeflow-xl-2-256",
        summary="FreeFlow one-step student of sit-repa-xl-2-256, FID 1.45",
        filename="freeflow-xl-2-256.pt",
        repository=_FREEFLOW_REPOSITORY,
        pattern=r"^(?!.*sit(?!.*repa)).*256",  # the publisher's name for it is not confirmed
        licence="MIT",
        source=_FREEFLOW,
    ),
    WeightFile(
        name="freeflow-sit-xl-2-256",
        summary="FreeFlow one-step student of sit-xl-2-256, FID 1.69",
        filename="freeflow-sit-xl-2-256.pt",
        repository=_FREEFLOW_REPOSITORY,
        pattern=r"^(?!.*repa)(?=.*256).*sit",
        licence="MIT",
        source=_FREEFLOW,
    ),
    WeightFile(
        name="freeflow-xl-2-512",
        summary="FreeFlow one-step student of SiT-XL/2 with REPA at 512 pixels, FID 1.49",
        filename="FreeFlow_512.pt",
        repository=_FREEFLOW_REPOSITORY,
        revision="88a8120534b6514525a883cd2bff6931d396cce6",
        size=2_717_071_257,
        sha256="8551ca554818a46b5a8d79e1e23546d113240065041790a36ee53113dd2ad72f",
        licence="MIT",
        source=_FREEFLOW,
    ),
)


def published_names(family: str) -> list[str]:
    """Names of the published weights of one family, e.g. ``"sit-xl-2-256"`` of ``"sit"``."""
    return [file.name for file in PUBLISHED if re.fullmatch(rf"{family}-(s|b|l|xl)-\d-\d+", file.name)]
