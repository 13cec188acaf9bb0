"""The many-step teacher's samples, kept between runs: a student is scored against the same ones every time."""

import hashlib
import json
import logging
from importlib import resources
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from freeflow_core.config import RunConfig
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import Teacher
from freeflow_core.network_file import load_tensors, save_tensors
from freeflow_core.types import Condition
from freeflow_core.weights import cache_folder, data_size

_log = logging.getLogger("freeflow")
_MOST_BYTES = 2**28
"""Larger sets of samples are drawn anew each time rather than fill somebody's disk."""


@final
class TeacherSamples:
    """Samples 0 ... ``number`` - 1 of a teacher as files, named and checked by everything that they depend on.

    That is the weights and options of the teacher, sampler, steps, guidance, seed, number, conditions and precision;
    not the batches they were drawn in or the device, whose rounding differs. A file of other settings is never used:
    one in the cache has another name, one that ``evaluation.teacher_samples`` names is refused.

    Args:
        condition: of the first samples, which tells teachers apart that draw their classes in other ways.
    """

    def __init__(self, config: RunConfig, teacher: Teacher, condition: Condition, number: int, precision: str) -> None:
        evaluation = config.evaluation
        sampler, chosen = evaluation.reference_sampler, config.teacher
        self._key: dict[str, Any] = {
            "teacher": None if chosen is None else chosen.model_dump(mode="json"),
            "weights": fingerprint(teacher),
            "condition": _digest([("condition", condition)] if isinstance(condition, Tensor) else []),
            "sampler": sampler.model_dump(mode="json"),
            "steps": evaluation.reference_steps,
            "guidance": [evaluation.guidance_weight, evaluation.guidance_low, evaluation.guidance_high],
            "seed": evaluation.seed,
            "number": number,
            "precision": precision,
        }
        self._shape = (number, *teacher.sample_shape)
        name = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()[:24]
        self._cached = cache_folder() / "teacher-samples" / f"{name}.safetensors"
        self._named = evaluation.teacher_samples
        self._enabled = evaluation.cache and chosen is not None and 4 * torch.Size(self._shape).numel() <= _MOST_BYTES

    def load(self) -> tuple[Tensor, float] | None:
        """Samples (n, *D) float32 and the network passes each took, or None when there are none.

        Raises:
            ConfigError: ``evaluation.teacher_samples`` names samples of other settings, or no readable file.
        """
        if self._named is not None:
            return self._read(_find(self._named), required=True)
        if self._enabled and self._cached.is_file():
            return self._read(self._cached, required=False)
        return None

    def save(self, x: Tensor, evaluations: float, path: Path | None = None) -> None:
        """Keep them for other runs, in the cache or at ``path``. A cache that cannot be written is left alone."""
        if path is None and not self._enabled:
            return
        try:
            save_tensors(path or self._cached, {"x": x.float()}, {"key": self._key, "evaluations": evaluations})
        except CheckpointError as error:
            if path is not None:
                raise
            _log.info(f"The teacher's samples are not kept for other runs: {error}")
            return
        if path is None:
            _log.info(f"Kept the teacher's samples for other runs: {self._cached} ({data_size(4 * x.numel())}).")

    def _read(self, path: Path, *, required: bool) -> tuple[Tensor, float] | None:
        try:
            tensors, metadata = load_tensors(path)
        except CheckpointError as error:
            if required:
                raise ConfigError(f"evaluation.teacher_samples={self._named}: {error}") from error
            _log.warning("Drawing the teacher's samples anew: %s", error)
            return None
        found, x = metadata.get("key", {}), tensors.get("x", torch.empty(0))
        differing = [name for name in self._key if found.get(name) != self._key[name]]
        if not differing and tuple(x.shape) == self._shape and bool(x.isfinite().all()):
            return x.float(), float(metadata["evaluations"])
        if required:
            raise ConfigError(
                f"evaluation.teacher_samples={self._named} holds samples of other settings: they differ in "
                f"{', '.join(differing) or 'shape or values'}. Set evaluation.teacher_samples=null to draw them anew."
            )
        return None


def fingerprint(network: torch.nn.Module) -> str:
    """SHA-256 of the names, shapes, types and values of all weights and buffers."""
    return _digest(sorted(network.state_dict().items()))


def _digest(tensors: list[tuple[str, Tensor]]) -> str:
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
