"""What the students of vector states share: everything but what their numbers mean."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from freeflow_core.config.component import ComponentConfig
from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import BuildContext, Student, Teacher
from freeflow_core.math.flow import expand_times
from freeflow_core.network_file import check_tensors
from freeflow_core.types import Condition, LoadReport, NetworkState
from freeflow_toy.config import TrunkConfig

_GUIDANCE_SCALE = 8.0
"""Guidance weights of 1 to 9 spread over one half period of the lowest frequency."""


class MLPTrunk(Student):
    """Base: one residual MLP with SiLU, smooth in every input, so forward mode works in any order.

    Inputs: the flattened state; raw t and d = t - s with sin and cos of pi k t and pi k d, k = 1, 2, ...; the guidance
    weight in the same way (None means 1); a learnt class embedding, whose last row is the null class.

    Args:
        sample_shape: dimensions ``*D`` of one state.
        num_classes: classes, or None for an unconditional student.
        num_outputs: numbers that ``features`` gives for a state.
        width, depth, num_frequencies: see :class:`freeflow_toy.config.TrunkConfig`.
        others: further constructor arguments of the student, to rebuild it.
    """

    family: str
    """Of the tensors' names."""
    kind: str
    """The student in errors."""

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        num_classes: int | None,
        num_outputs: int,
        *,
        width: int,
        depth: int,
        num_frequencies: int,
        others: dict[str, Any],
    ) -> None:
        super().__init__()
        self.sample_shape = tuple(sample_shape)
        self.num_classes = num_classes
        self.num_frequencies = num_frequencies
        self._config: dict[str, Any] = {
            "sample_shape": list(sample_shape),
            "num_classes": num_classes,
            "width": width,
            "depth": depth,
            "num_frequencies": num_frequencies,
            **others,
        }
        self.stem = nn.Linear(math.prod(sample_shape) + 3 * (1 + 2 * num_frequencies), width)
        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.head = nn.Linear(width, num_outputs)

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, TrunkConfig)
        teacher, source = context.teacher, context.source
        shape = config.sample_shape or (teacher.sample_shape if teacher is not None else None)
        if shape is None:
            raise ConfigError(
                f"The {cls.kind} student takes its state's dimensions from the teacher, and this run has none. "
                "Set student.sample_shape, e.g. --set student.sample_shape=[2]."
            )
        classes = config.num_classes
        if classes is None:
            classes = teacher.num_classes if teacher is not None else source.num_classes if source is not None else None
        values = {**config.model_dump(), "sample_shape": shape, "num_classes": classes}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            return cls(**values)

    def features(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        """The head's (N, num_outputs) numbers."""
        x = x_t.flatten(1)
        weight = torch.ones_like(t) if guidance is None else guidance
        inputs = [x]
        for scalar in (t, t - s, (weight - 1) / _GUIDANCE_SCALE):
            inputs.extend(self._fourier(expand_times(scalar, x)))
        hidden = self.stem(torch.cat(inputs, dim=1))
        if self.classes is not None:
            if not isinstance(condition, Tensor):
                raise ValueError(f"a class-conditional student needs (N,) labels, got {type(condition).__name__}")
            hidden = hidden + self.classes(condition.to(x.device))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        output: Tensor = self.head(nn.functional.silu(hidden))
        return output

    def load_teacher(self, teacher: Teacher) -> LoadReport:
        """Take nothing: no teacher is an MLP of this kind. The report says so."""
        state = teacher.network_state()
        return LoadReport(new=tuple(self.state_dict()), left=() if state is None else tuple(state.tensors))

    def network_state(self) -> NetworkState:
        return NetworkState(self.family, self._config, self.state_dict())

    @classmethod
    def from_state(cls, state: NetworkState) -> Self:
        if state.family != cls.family:
            raise CheckpointError(
                f"An {cls.kind} student needs a network of the family {cls.family!r}, but this one is "
                f"{state.family!r}. Choose the student that wrote the checkpoint."
            )
        try:
            values: dict[str, Any] = {**state.config, "sample_shape": tuple(state.config["sample_shape"])}
            student = cls(**values)
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"The {cls.kind} student's configuration in the checkpoint is not usable ({error}). It was written by "
                "another version, or damaged; use the version that wrote it."
            ) from None
        check_tensors(student.state_dict(), state.tensors, f"{cls.kind} student's checkpoint")
        dtype = state.tensors["stem.weight"].dtype
        student.to(dtype).load_state_dict(dict(state.tensors))
        return student

    def _fourier(self, values: Tensor) -> list[Tensor]:
        """(N, 1) values with their sines and cosines, low frequencies only."""
        angles = [math.pi * (k + 1) * values for k in range(self.num_frequencies)]
        return [values, *(angle.sin() for angle in angles), *(angle.cos() for angle in angles)]
