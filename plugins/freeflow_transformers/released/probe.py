"""Whether a network behaves as its convention says, which names and shapes cannot tell.

At t = 1 a state is pure noise z and tells nothing of the data, so the best velocity n - x is z minus the mean image,
almost parallel to z. A network of the opposite convention answers almost the opposite; one that predicts the noise
answers z. Random weights answer something unrelated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from freeflow_core.errors import CheckpointError
from freeflow_core.types import Condition

_NUM_SAMPLES = 2
_LIMIT = 0.5


@torch.no_grad()
def noise_alignment(
    answer: Callable[[Tensor, Condition], Tensor], shape: tuple[int, ...], num_classes: int | None, device: torch.device
) -> float:
    """Cosine in [-1, 1] between noise z and ``answer(z, condition)``, the velocity or the noise predicted for it."""
    z = torch.randn(_NUM_SAMPLES, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    condition = None if num_classes is None else torch.arange(_NUM_SAMPLES) % num_classes
    direction = answer(z, condition).to(z)
    return float(torch.nn.functional.cosine_similarity(z.flatten(), direction.flatten(), dim=0))


def judge_alignment(alignment: float, what: str, convention: str) -> str:
    """What the alignment says of ``what``, in words.

    Raises:
        CheckpointError: the network answers the opposite of what its convention says.
    """
    if alignment < -_LIMIT:
        raise CheckpointError(
            f"{what} does not follow the convention it was read with ({convention}): asked about pure noise, it points "
            f"the opposite way (cosine {alignment:.2f}, expected near 1). Its weights are of another family: choose "
            "the teacher, or the options family, time_direction and sign, that describe them."
        )
    verdict = "as its convention says" if alignment > _LIMIT else "which tells nothing (untrained weights?)"
    return f"asked about pure noise it answers at cosine {alignment:.2f} to it, {verdict}"
