"""The many-step teacher's samples, kept between runs: a student is scored against the same ones every time."""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from freeflow_core.config import RunConfig
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import Teacher
from freeflow_core.network_file import load_tensors, save_tensors
from freeflow_core.weights import cache_folder, data_size

_log = logging.getLogger("freeflow")
_FEW = 64
_MOST_BYTES = 2**28
"""Larger sets of samples are drawn anew each time rather than fill somebody's disk."""


@final
class TeacherSamples:
    """Samples 0 ... ``number`` - 1 of a teacher as files, named and checked by everything that they depend on.

    That is the weights and options of the teacher, its classes, sampler, steps, guidance, seed and precision; not the
    batches they were drawn in or the device, whose rounding differs. A sample depends on its index and no other, so
    that a file with more of them serves too. One of other settings is never used.
    """

    def __init__(self, config: RunConfig, teacher: Teacher, number: int, precision: str) -> None:
        evaluation = config.evaluation
        self._config, self._teacher, self._precision = config, teacher, precision
        self._number, self._shape = number, tuple(teacher.sample_shape)
        self._named = evaluation.teacher_samples
        small = 4 * number * math.prod(self._shape) <= _MOST_BYTES
        self._enabled = evaluation.cache and config.teacher is not None and small

    @cached_property
    def _key(self) -> dict[str, Any]:
        """Asked for only where a file may be read or written: all the teacher's weights are read for it."""
        evaluation, chosen = self._config.evaluation, self._config.teacher
        condition = self._teacher.balanced_condition(torch.arange(_FEW))
        return {
            "teacher": None if chosen is None else chosen.model_dump(mode="json"),
            "weights": _digest(sorted(self._teacher.state_dict().items())),
            "condition": _digest([("condition", condition)] if isinstance(condition, Tensor) else []),
            "sampler": evaluation.reference_sampler.model_dump(mode="json"),
            "steps": evaluation.reference_steps,
            "guidance": [evaluation.guidance_weight, evaluation.guidance_low, evaluation.guidance_high],
            "seed": evaluation.seed,
            "precision": self._precision,
        }

    @property
    def _cached(self) -> Path:
        name = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()[:24]
        return cache_folder() / "teacher-samples" / f"{name}.safetensors"

    def load(self) -> tuple[Tensor, float] | None:
        """Samples (number, *D) float32 and the network passes each took, or None when there are none that fit.

        Raises:
            ConfigError: ``evaluation.teacher_samples`` names no readable file.
        """
        if (found := self.named()) is not None:
            return found
        if not self._enabled or not self._cached.is_file():
            return None
        try:
            return self._fitting(*load_tensors(self._cached))
        except CheckpointError as error:
            _log.warning("Drawing the teacher's samples anew: %s", error)
            return None

    def named(self) -> tuple[Tensor, float] | None:
        """Those of the file that the run names. Raises as :meth:`load`."""
        return None if self._named is None else self._fitting(*read_named(self._named))

    def save(self, x: Tensor, evaluations: float) -> None:
        """Keep them for other runs. A cache that cannot be written is left alone."""
        if not self._enabled:
            return
        try:
            save_tensors(self._cached, {"x": x.float()}, {"key": self._key, "evaluations": evaluations})
        except CheckpointError as error:
            _log.info(f"The teacher's samples are not kept for other runs: {error}")
            return
        _log.info(f"Kept the teacher's samples for other runs: {self._cached} ({data_size(4 * x.numel())}).")

    def _fitting(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> tuple[Tensor, float] | None:
        """Those of a file, or None when it has too few or those of other settings."""
        x = tensors.get("x", torch.empty(0))[: self._number].float()
        if x.shape != (self._number, *self._shape) or metadata.get("key") != self._key or not x.isfinite().all():
            return None
        return x, float(metadata["evaluations"])


def read_named(named: str, *, shapes_only: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of what ``evaluation.teacher_samples`` names. Raises ``ConfigError``: no readable file."""
    try:
        return load_tensors(_find(named), shapes_only=shapes_only)
    except CheckpointError as error:
        raise ConfigError(f"evaluation.teacher_samples={named}: {error}") from error


def _digest(tensors: list[tuple[str, Tensor]]) -> str:
    """SHA-256 of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _find(named: str) -> Path:
    """A path, or ``PACKAGE:PATH`` inside an installed package."""
    package, colon, path = named.partition(":")
    if not colon or not package.isidentifier():
        return Path(named).expanduser()
    try:
        return Path(str(resources.files(package).joinpath(path)))
    except ModuleNotFoundError:
        raise ConfigError(f"evaluation.teacher_samples={named}: there is no package {package!r}.") from None
