"""Frozen values that travel between the core and plugins.

Shapes: N is the number of rows in this process's micro-batch, ``*D`` the dimensions of one state.
Times and guidance weights are (N,) tensors and live on the host, so that choosing rows by them needs no device sync.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Condition: TypeAlias = Tensor | dict[str, Tensor] | None
"""What a network is conditioned on: nothing, one (N, ...) tensor such as labels, or a dict of such tensors."""


def index_condition(condition: Condition, rows: Tensor) -> Condition:
    """The chosen rows of a condition; ``rows`` is a host index tensor."""
    if condition is None:
        return None
    if isinstance(condition, dict):
        return {key: value[rows.to(value.device, non_blocking=True)] for key, value in condition.items()}
    return condition[rows.to(condition.device, non_blocking=True)]


def concatenate_conditions(first: Condition, second: Condition) -> Condition:
    """Two conditions as one batch. Raises ``ValueError`` when their kinds differ."""
    if first is None and second is None:
        return None
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return {key: torch.cat([first[key], second[key]]) for key in first}
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    raise ValueError(f"cannot join a condition of type {type(first).__name__} with {type(second).__name__}")


def describe(value: object) -> str:
    """Shape, dtype and device of a tensor; parts of a dict; else the type."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {describe(part)}" for key, part in value.items()) + "}"
    return "None" if value is None else f"a {type(value).__name__}"


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: per-sample ``weight`` (N,) where low <= t <= high, 1 elsewhere (both ends closed)."""

    weight: Tensor
    low: float = 0.0
    high: float = 1.0

    def at(self, t: Tensor) -> Tensor:
        """(N,) weights at times ``t`` (N,), in t's dtype and on t's device."""
        weight = self.weight.to(t)
        return torch.where((t >= self.low) & (t <= self.high), weight, torch.ones_like(weight))

    def rows(self, rows: Tensor) -> Guidance:
        return Guidance(self.weight[rows], self.low, self.high)


@dataclass(frozen=True)
class Batch:
    """What a source yields: ``x`` (N, *D) states or None for the prior alone, and their condition."""

    x: Tensor | None
    condition: Condition


class Draws(ABC):
    """This process's rows of the step's random numbers, each a function of (seed, stream, global sample index) alone.

    Attributes:
        index: (N,) global sample indices, int64 on the host.
        position: (N,) places in the global batch, int64 on the host; stratified splits go by it.
        batch_size: rows of the global batch.
        device, dtype: of the noise returned.
    """

    index: Tensor
    position: Tensor
    batch_size: int
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def noise(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """(N, *shape) standard normal, on the device."""

    @abstractmethod
    def uniform(self, stream: str) -> Tensor:
        """(N,) uniform in the open interval (0, 1), float64 on the host."""

    @abstractmethod
    def normal(self, stream: str) -> Tensor:
        """(N,) standard normal, float64 on the host."""

    @abstractmethod
    def integers(self, stream: str, high: int) -> Tensor:
        """(N,) integers in [0, high), int64 on the host."""

    @abstractmethod
    def split(self, share: float) -> tuple[Tensor, Tensor]:
        """Stratified split: host indices of this process's rows outside and inside a ``share`` of the global batch.

        Every process and micro-batch gets the same number of each. Raises ``ConfigError`` when that is impossible.
        """

    @abstractmethod
    def rows(self, rows: Tensor) -> Draws:
        """The draws of the chosen rows."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands, in images seen. ``updates`` counts optimizer steps per role."""

    images: int
    step: int
    total_images: int
    updates: Mapping[str, int] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """Share of the run done, in [0, 1]."""
        return min(1.0, self.images / self.total_images)


@dataclass(frozen=True)
class Loss:
    """One role's loss: ``per_sample`` (N,) with gradient; its mean over the global batch is minimised.

    ``terms`` are detached 0-d tensors for logging; they stay on the device until the logging interval. ``share``: how
    much of the role's rows these are, where they come in parts (:class:`freeflow_core.interfaces.ObjectiveInParts`).
    """

    per_sample: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    share: float = 1.0


Losses: TypeAlias = dict[str, Loss]
"""Losses by role."""


@dataclass(frozen=True)
class Samples:
    """``x`` (N, *D) at the grid's last time, and network evaluations per sample (guided ones count two)."""

    x: Tensor
    num_evaluations: float


Scores: TypeAlias = dict[str, dict[str, float]]
"""Scores by name, by row of the table (``"student"``, ``"teacher"``, ...)."""


@dataclass(frozen=True)
class NetworkState:
    """A network as data: ``family`` of its tensors' names, constructor ``config``, and the tensors."""

    family: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class PortableNetwork:
    """A network as diffusers loads it, without this package.

    Args:
        class_name: of a ``diffusers.ModelMixin``: in ``code``, or without it one of diffusers' own.
        config: arguments of its constructor, as JSON holds them.
        tensors: its state dict.
        code: a Python file that needs torch and diffusers alone, or None.
    """

    class_name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    code: Path | None = None


@dataclass(frozen=True)
class LoadReport:
    """What a student took from its teacher: tensor names taken, new (initialised here), and left behind."""

    taken: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{len(self.taken)} tensors taken from the teacher, {len(self.new)} new"
        text += f" ({_groups(self.new)})" if self.new else ""
        return text + (f", {len(self.left)} of the teacher's left behind ({_groups(self.left)})" if self.left else "")


def _groups(names: tuple[str, ...]) -> str:
    return ", ".join(dict.fromkeys(name.split(".")[0] for name in names))


@dataclass(frozen=True)
class RunParent:
    """The run that another belongs to, such as a comparison: its ``key``, and the folder that holds both."""

    key: str
    folder: Path


@dataclass(frozen=True)
class RunInfo:
    """What observers and trackers are told about a run.

    Args:
        key: by which trackers find the run again, even one that was killed before its first checkpoint; None: they
            make their own.
        parent: the run that this one belongs to, or None; one with a key and no parent may have others below it.
        tags: short texts to find the run by.
    """

    name: str
    command: str
    folder: Path
    config: Mapping[str, Any]
    config_yaml: str
    resumed: bool = False
    key: str | None = None
    parent: RunParent | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


Status: TypeAlias = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Check:
    """One finding of ``freeflow doctor`` and ``freeflow teacher check``: what was found, and what to do."""

    name: str
    status: Status
    detail: str
