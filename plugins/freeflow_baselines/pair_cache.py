"""Pairs of noise and the teacher's end point, kept in a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor

from freeflow_baselines.config_generative import TrajectoryOptions
from freeflow_baselines.rows import draw_guidance
from freeflow_baselines.teacher_path import end_point
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import Teacher
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.network_file import load_tensors, save_tensors
from freeflow_core.types import Condition

_KIND = "pairs"


@final
@dataclass(frozen=True)
class PairCache:
    """P pairs on the host.

    Args:
        noise, data: (P, *D) float32.
        labels: (P,) int64, or None.
        guidance: (P,) float64, the weights each trajectory was guided with.
        description: how they were made.
    """

    noise: Tensor
    data: Tensor
    labels: Tensor | None
    guidance: Tensor
    description: dict[str, Any]

    @property
    def num_classes(self) -> int | None:
        """Classes of the teacher that made them, or None."""
        classes: int | None = self.description.get("num_classes")
        return classes

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ``CheckpointError`` for a file that is missing, damaged, or holds no pairs."""
        tensors, description = load_tensors(path)
        if description.get("kind") != _KIND or not {"noise", "data", "guidance"} <= tensors.keys():
            raise CheckpointError(
                f"{path} holds no pairs of noise and data. Expected a file written by "
                "freeflow_baselines.pair_cache.write_pairs."
            )
        return cls(tensors["noise"], tensors["data"], tensors.get("labels"), tensors["guidance"], description)


def write_pairs(
    path: Path,
    teacher: Teacher,
    num_pairs: int,
    options: TrajectoryOptions | None = None,
    *,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], None] | None = None,
) -> None:
    """Write ``num_pairs`` pairs of the teacher to ``path``; pair i is a function of (seed, i) and the options alone.

    Args:
        teacher: on ``device``.
        options: the method and the guidance; None: Heun's with 32 steps, unguided.
        seed: in [0, 2**63).
        batch_size: pairs made at once.
        on_batch: told the number of pairs made so far, for a progress bar.

    Raises:
        ConfigError: a teacher conditioned on something else than labels.
        CheckpointError: the file cannot be written; nothing half-written stays.
    """
    options = options or TrajectoryOptions()
    parts: dict[str, list[Tensor]] = {}
    for first in range(0, num_pairs, batch_size):
        index = torch.arange(first, min(first + batch_size, num_pairs))
        draws = PhiloxDraws(seed, index, device=device)
        z, condition = draws.noise("prior", teacher.sample_shape), teacher.sample_condition(draws)
        guidance = draw_guidance(draws, options)
        made = {"noise": z, "data": end_point(teacher, z, condition, guidance, options), "guidance": guidance}
        for name, values in {**made, **_labels(condition)}.items():
            parts.setdefault(name, []).append(values.cpu())
        if on_batch is not None:
            on_batch(first + len(index))
    description = {"kind": _KIND, "num_classes": teacher.num_classes, "seed": seed, **options.model_dump(mode="json")}
    save_tensors(path, {name: torch.cat(values) for name, values in parts.items()}, description)


def _labels(condition: Condition) -> dict[str, Tensor]:
    if condition is None:
        return {}
    if not isinstance(condition, Tensor) or condition.ndim != 1:
        raise ConfigError("Pairs are kept with class labels, one number a pair; this teacher's condition is another.")
    return {"labels": condition}
