"""Students of vector states: one residual MLP, smooth in every input, that gives an average velocity or a policy."""

import math
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import AverageVelocityStudent, BuildContext, PolicyStudent, Student, Teacher
from freeflow_core.math.flow import expand_times
from freeflow_core.math.policies import DXPolicy, GMPolicy, Policy
from freeflow_core.network_file import build_network
from freeflow_core.types import Condition, LoadReport, NetworkState
from freeflow_toy.config import MLPPolicyStudentConfig, MLPStudentConfig, TrunkConfig

_GUIDANCE_SCALE = 8.0
"""Guidance weights of 1 to 9 spread over one half period of the lowest frequency."""


class MLPTrunk(Student):
    """What both have in common: everything but what their numbers mean.

    Inputs: the flattened state; raw t and d = t - s with sin and cos of pi k t and pi k d, k = 1, 2, ...; the guidance
    weight in the same way (None means 1); a learnt class embedding, whose last row is the null class. SiLU throughout,
    so that forward mode works in any order.

    Args:
        config: size and inputs, with the dimensions of one state.
        num_outputs: numbers that ``features`` gives for a state.
    """

    family: str
    """Of the tensors' names."""
    kind: str
    """The student in errors."""
    options: type[TrunkConfig]

    def __init__(self, config: TrunkConfig, num_outputs: int) -> None:
        super().__init__()
        assert config.sample_shape is not None
        self.sample_shape = config.sample_shape
        self.num_classes = config.num_classes
        self._config = config
        width, depth = config.width, config.depth
        self.stem = nn.Linear(math.prod(self.sample_shape) + 3 * (1 + 2 * config.num_frequencies), width)
        self.classes = None if config.num_classes is None else nn.Embedding(config.num_classes + 1, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.head = nn.Linear(width, num_outputs)

    @classmethod
    def from_config(cls, config: TrunkConfig, context: BuildContext) -> Self:
        """Weights depend on the run's seed alone. Raises ``ConfigError`` when nothing says the state's dimensions."""
        shape = config.sample_shape or (context.teacher.sample_shape if context.teacher is not None else None)
        if shape is None:
            raise ConfigError(
                f"The {cls.kind} student takes its state's dimensions from the teacher, and this run has none. "
                "Set student.sample_shape, e.g. --set student.sample_shape=[2]."
            )
        data = context.source if context.teacher is None else context.teacher
        classes = config.num_classes or (data.num_classes if data is not None else None)
        make: Any = cls
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            student: Self = make(config.model_copy(update={"sample_shape": shape, "num_classes": classes}))
        return student

    def features(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        x = x_t.flatten(1)
        weight = torch.ones_like(t) if guidance is None else guidance
        inputs = [x]
        for scalar in (t, t - s, (weight - 1) / _GUIDANCE_SCALE):
            values = expand_times(scalar, x)  # with low frequencies only
            angles = [math.pi * (k + 1) * values for k in range(self._config.num_frequencies)]
            inputs += [values, *(angle.sin() for angle in angles), *(angle.cos() for angle in angles)]
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
        return NetworkState(self.family, self._config.model_dump(mode="json"), self.state_dict())

    @classmethod
    def from_state(cls, state: NetworkState) -> Self:
        make: Any = cls
        student: Self = build_network(
            lambda **values: make(cls.options(**values)), state, cls.family, f"{cls.kind} student's checkpoint"
        )
        return student


@final
class MLPStudent(MLPTrunk, AverageVelocityStudent):
    """u(x_t, t, s, c, w)."""

    family = "toy-mlp"
    kind = "mlp"
    options = MLPStudentConfig

    def __init__(self, config: MLPStudentConfig) -> None:
        super().__init__(config, math.prod(config.sample_shape or ()))
        if config.zero_init:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        return self.features(x_t, t, s, condition, guidance).reshape(x_t.shape)

    def average_velocity(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return output


@final
class MLPPolicyStudent(MLPTrunk, PolicyStudent):
    """A policy over [s, t] (Chen et al. 2025, section 3.2).

    ``forward`` gives (N, P) numbers: K velocities, and for ``gm`` K logits and one logarithm of a deviation besides.
    The first dimension of a state holds the mixture's channels; places along the others share its logits.
    """

    family = "toy-mlp-policy"
    kind = "mlp-policy"
    options = MLPPolicyStudentConfig

    def __init__(self, config: MLPPolicyStudentConfig) -> None:
        dim, self._policy = math.prod(config.sample_shape or ()), config.policy
        components = config.num_components or (10 if config.policy == "dx" else 32)
        super().__init__(config, components * dim if config.policy == "dx" else components * (dim + 1) + 1)
        self.shift, self.num_substeps = config.shift, config.num_substeps
        self._split = components * dim, components
        if config.policy == "gm":
            with torch.no_grad():
                self.head.weight[-1].zero_()
                self.head.bias[-1].fill_(math.log(config.initial_std))

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        return self.features(x_t, t, s, condition, guidance)

    def policy(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Policy:
        num, (ends, components) = len(output), self._split
        velocities = output[:, :ends].reshape(num, components, *self.sample_shape)
        if self._policy == "dx":
            return DXPolicy(velocities, x_t, t, s, shift=self.shift)
        logits = output[:, ends : ends + components].reshape(num, components, *([1] * len(self.sample_shape)))
        return GMPolicy(velocities, logits, output[:, -1], x_t, t)
