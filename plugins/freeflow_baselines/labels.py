"""Labels dropped in training, so that the network also learns the unconditional velocity."""

from __future__ import annotations

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.types import Condition, Draws


def drop_labels(condition: Condition, num_classes: int | None, share: float, draws: Draws) -> tuple[Condition, Tensor]:
    """``condition`` with a share of its labels replaced by the null class (Ho & Salimans 2022, algorithm 1).

    Args:
        condition: (N,) labels, or None.
        num_classes: the null class, one after the last; None: the network has no classes, and nothing is dropped.
        share: in [0, 1].
        draws: stream ``label-dropout``.

    Returns:
        The condition, and (N,) bool on the host: the dropped rows.

    Raises:
        ConfigError: a condition that is no label.
    """
    if condition is None or num_classes is None or share == 0:
        return condition, torch.zeros(len(draws.index), dtype=torch.bool)
    if not isinstance(condition, Tensor) or condition.ndim != 1:
        raise ConfigError(
            "label_dropout replaces class labels, one number a sample; this source's condition is something "
            "else. Set objective.label_dropout=0."
        )
    dropped = draws.uniform("label-dropout") < share
    return condition.masked_fill(dropped.to(condition.device, non_blocking=True), num_classes), dropped
