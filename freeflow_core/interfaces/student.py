"""The trainable flow map."""

from abc import abstractmethod
from enum import Enum
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces.build import Buildable
from freeflow_core.interfaces.build_context import BuildContext
from freeflow_core.interfaces.teacher import Teacher
from freeflow_core.math.flow import average_velocity_jump
from freeflow_core.math.policies import Policy as Policy
from freeflow_core.math.policies import roll_policy
from freeflow_core.types import Condition, LoadReport, NetworkState, PortableNetwork


class StartTimes(str, Enum):
    """From which times a student has learnt to jump."""

    PRIOR = "prior"
    """From t = 1 alone: it has no few-step mode, and few-step samplers refuse it."""
    ANY = "any"
    ANY_TO_DATA = "any-to-data"
    """From any t, but to s = 0 alone (consistency models): several steps need fresh noise between the jumps."""


class Student(nn.Module, Buildable):
    """A network that jumps from time t to time s <= t.

    ``forward`` is the network's raw output and the only method a gradient pass may call: distributed wrappers
    intercept it and nothing else. Everything else is a pure function of that output.

    Attributes:
        sample_shape: dimensions ``*D`` of one state.
        num_classes: number of classes, or None.
        start_times: set by the objective that trained it; stored with the weights.
        codec: name of the codec whose states these are, where the weights say so; None: unknown.
        provenance: where published weights come from and how they are read, in words; empty for a network to train.
    """

    sample_shape: tuple[int, ...]
    num_classes: int | None = None
    start_times: StartTimes = StartTimes.ANY
    codec: str | None = None
    provenance: str = ""

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        """Raw output for states ``x_t`` (N, *D), times ``t`` and ``s`` (N,), and guidance weights (N,) or None."""

    @abstractmethod
    def jump(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_s (N, *D) as a pure function of ``forward``'s output."""

    @abstractmethod
    def load_teacher(self, teacher: Teacher) -> LoadReport:
        """Start from the teacher's weights; say which were taken, which are new, which were left."""

    @abstractmethod
    def network_state(self) -> NetworkState:
        """The network as data, for checkpoints and exports."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: NetworkState) -> Self:
        """Rebuild what ``network_state`` gave, weights included. Raises ``CheckpointError`` when it does not fit."""

    @classmethod
    def restore(cls, state: NetworkState, context: BuildContext) -> Self:
        """The student of a file: ``from_state``, unless it needs other components (such as its teacher's network).

        Raises ``CheckpointError`` as ``from_state`` does, and what building those components raises.
        """
        return cls.from_state(state)

    def enable_activation_checkpointing(self) -> None:
        """Recompute activations in the backward pass from now on; deep copies inherit it.

        Only where gradients are enabled: passes without gradient and forward-mode derivatives stay as they are, and no
        output or gradient changes. Raises ``ConfigError`` for a student that cannot.
        """
        raise ConfigError(
            f"The student {type(self).__name__} cannot recompute its activations. Set "
            "runtime.activation_checkpointing=false; training.accumulation saves memory with any student."
        )

    def export(self, path: Path) -> str:
        """Write the weights in the format their field has published, named by the suffix; what was written, in words.

        Raises ``ConfigError`` for a student or suffix without such a format, ``CheckpointError`` when writing fails.
        """
        raise ConfigError(
            f"The student {type(self).__name__} has no published format to export to. Its own file, "
            "student.safetensors in the run's folder, can be read with safetensors as it is."
        )

    def portable(self) -> PortableNetwork:
        """The network for a diffusers pipeline.

        Its ``config`` has ``sample_shape`` and ``num_classes``; its ``forward`` takes (states, t, s, class_labels,
        guidance) and gives the average velocity.

        Raises ``ConfigError`` for a student without such a form.
        """
        raise ConfigError(
            f"The student {type(self).__name__} has no form that diffusers loads. `--format onnx` and `--format pt2` "
            "carry every student of classes whose computation can be traced; student.safetensors is read by freeflow."
        )

    def flow_map(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        """X(x_t, t, s): (N, *D)."""
        return self.jump(self(x_t, t, s, condition, guidance), x_t, t, s)


class AverageVelocityStudent(Student):
    """A student that predicts the average velocity u over [s, t], so that x_s = x_t - (t - s) u."""

    @abstractmethod
    def average_velocity(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """u (N, *D) as a pure function of ``forward``'s output."""

    def jump(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return average_velocity_jump(x_t, self.average_velocity(output, x_t, t, s), t, s)


class PolicyStudent(Student):
    """A student that emits a policy, a closed-form velocity field over [s, t], which is rolled from t to s (pi-Flow).

    Attributes:
        shift: of the time in which the policy is rolled, see :func:`freeflow_core.math.policies.roll_policy`.
        num_substeps: Euler substeps per unit of that time; they call no network.
    """

    shift: float = 1.0
    num_substeps: int = 128

    @abstractmethod
    def policy(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Policy:
        """The policy as a pure function of ``forward``'s output."""

    def jump(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        policy = self.policy(output, x_t, t, s)
        return roll_policy(policy, x_t, t, s, num_substeps=self.num_substeps, shift=self.shift)
