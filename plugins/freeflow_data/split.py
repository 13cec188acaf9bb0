"""A held-out split with each class in proportion."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_data.ordering import Rows, keyed_permutation


def split_rows(labels: Tensor | None, total: int, num_held_out: int, seed: int) -> tuple[Rows, Rows]:
    """:func:`stratified_split` for int64 ``labels`` (total,), or for unlabelled rows, which are one class.

    Raises:
        ConfigError: nothing, or nothing of a class, would be left to train on.
    """
    if num_held_out and num_held_out >= total:
        raise ConfigError(
            f"held_out={num_held_out} of {total} images leaves nothing to train on. Choose a smaller held_out."
        )
    return stratified_split(np.zeros(total, dtype=np.int64) if labels is None else labels.numpy(), num_held_out, seed)


def stratified_split(labels: Rows, num_held_out: int, seed: int) -> tuple[Rows, Rows]:
    """Rows to train on and rows to hold out, both ascending, disjoint, together all of ``labels``.

    Exactly ``num_held_out`` rows are held out, and each class's share is within one row of proportional (largest
    remainders first). A class's rows are ranked by ``seed`` alone, so the choice depends on no library's shuffle.

    Args:
        labels: (M,) class of each row.
        num_held_out: at least 0.
        seed: in [0, 2**63).

    Raises:
        ConfigError: a class would be left without a training image.
    """
    classes, counts = np.unique(labels, return_counts=True)
    quotas = _proportional(counts, num_held_out)
    exhausted = classes[quotas >= counts]
    if len(exhausted):
        names = ", ".join(map(str, exhausted))
        raise ConfigError(
            f"held_out={num_held_out} of {len(labels)} images leaves nothing to train on in class {names}. "
            "Choose a smaller held_out; a third of the images is plenty."
        )
    held_out = np.zeros(len(labels), dtype=bool)
    for label, quota in zip(classes, quotas, strict=True):
        rows = np.flatnonzero(labels == label)
        held_out[rows[keyed_permutation(seed, f"held-out/{label}", len(rows))[:quota]]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _proportional(counts: Rows, total: int) -> Rows:
    """``total`` shared out in proportion to ``counts``, in integers: floors, then the largest remainders."""
    quotas, remainders = np.divmod(counts * total, counts.sum())
    left = total - int(quotas.sum())
    quotas[np.argsort(-remainders, kind="stable")[:left]] += 1
    return quotas
