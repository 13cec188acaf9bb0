"""Samples of one batch as arrays on the host."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.sampling import SampleBatch
from freeflow_core.types import Condition


def host_samples(batch: SampleBatch) -> Tensor:
    """uint8 images (n, 1|3, H, W), or states (n, *D) of models without images.

    Raises:
        ConfigError: the codec left latents that are no images.
    """
    images = batch.images
    if images.ndim == 4 and images.shape[1] not in (1, 3):
        raise ConfigError(
            f"The samples have {images.shape[1]} channels: they are latents, and the codec left them as they are. Name "
            "the codec they were made with, e.g. --set codec=sd-vae."
        )
    return images.cpu()


def file_array(samples: Tensor) -> np.ndarray:
    """Images as (n, H, W, C), everything else as it is."""
    return (samples.permute(0, 2, 3, 1) if samples.ndim == 4 else samples).contiguous().numpy()


def class_labels(conditions: list[Condition]) -> np.ndarray | None:
    """(n,) int64 of all batches, or None when the conditions are not classes."""
    classes = [c.cpu() for c in conditions if isinstance(c, Tensor) and c.ndim == 1 and not c.is_floating_point()]
    return torch.cat(classes).long().numpy() if len(classes) == len(conditions) else None
