"""What is minimised."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor, nn

from freeflow_core.config.run import OptimizerConfig
from freeflow_core.errors import PluginError
from freeflow_core.interfaces.build import Buildable
from freeflow_core.interfaces.student import StartTimes, Student
from freeflow_core.interfaces.teacher import Teacher
from freeflow_core.types import Batch, Draws, Losses, Progress


@dataclass(frozen=True)
class Role:
    """A network beside the student: a critic, an EMA target, a frozen copy.

    Args:
        network: built, not yet on the device; a copy, never the student itself.
        trainable: trained by its own loss and optimizer, or frozen.
        ema: keep an average of its weights.
        optimizer: None for the run's own.
        follows: role whose weights a frozen network trails as an exponential moving average (an EMA target), or None.
        follow_halflife_images: half-life of that average in images; None copies the weights after every step.
    """

    network: nn.Module
    trainable: bool = True
    ema: bool = False
    optimizer: OptimizerConfig | None = None
    follows: str | None = None
    follow_halflife_images: float | None = None


@dataclass(frozen=True)
class Model:
    """One role's network as an objective sees it.

    ``wrapped`` for gradient passes; ``bare`` for passes without gradient and derivatives (forward mode does not
    survive a distributed wrapper); ``ema`` the averaged copy, or None. ``is_divided``: its weights are divided among
    processes, each of which has to ask it equally often; see :func:`freeflow_core.objective_kit.passes.asked_rows`.
    ``is_compiled``: its blocks are compiled; see :func:`freeflow_core.math.derivative.directional_derivative`.
    """

    wrapped: nn.Module
    bare: Any
    ema: Any = None
    is_divided: bool = False
    is_compiled: bool = False


class Models(dict[str, Model]):
    """Roles by name, ``"student"`` among them, and the frozen ``teacher``, where there is one.

    Asking for the teacher of a run without one raises ``ValueError``.
    """

    teacher: Teacher

    def __init__(self, models: Mapping[str, Model], teacher: Teacher | None) -> None:
        super().__init__(models)
        self.has_teacher = teacher is not None
        if teacher is not None:
            self.teacher = teacher

    def __missing__(self, role: str) -> Model:
        raise PluginError(
            f"losses() asked for the role {role!r}, which roles() did not return. There are: {', '.join(self)}. Add it "
            "to what roles() returns."
        )

    def __getattr__(self, name: str) -> NoReturn:
        if name == "teacher":
            raise ValueError("this run has no teacher; the objective needs one")
        raise AttributeError(name)


class Context(ABC):
    """What the engine offers an objective during a step."""

    @abstractmethod
    def mean(self, values: Tensor) -> Tensor:
        """Mean of ``values`` (n,) or (n, k) over the rows of the *global* batch (all processes and micro-batches).

        Detached: 0-d or (k,). ``values`` must not depend on another ``mean`` of the same step.
        """


class Objective(Buildable):
    """A way of training a student.

    The attributes are read from the built objective, so that one may set them by its options.

    Attributes:
        needs_data: False: the engine passes no data, so data-free is enforced, not promised.
        needs_teacher: False for training from data alone.
        requires: the class of student it trains.
        start_times: what the student can do afterwards.
        uses_batch_means: whether ``losses`` calls ``context.mean``; with gradient accumulation the engine then
            collects the means in a pass without gradient first, so that the result does not depend on the split. An
            :class:`ObjectiveInParts` spares that pass.
    """

    needs_data: bool = False
    needs_teacher: bool = True
    requires: type[Any] = Student
    start_times: StartTimes = StartTimes.ANY
    uses_batch_means: bool = False

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        """Networks beside the student, by role; none by default. ``student`` has its starting weights."""
        return {}

    @abstractmethod
    def losses(self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context) -> Losses:
        """All roles' losses of one step, so that shared passes are done once. A role left out is not updated."""


class ObjectiveInParts(Objective):
    """One that needs means over the batch for some rows only, so that with accumulation the others need not wait."""

    @abstractmethod
    def early_losses(
        self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context
    ) -> tuple[Losses, Callable[[Context], Losses]]:
        """Instead of ``losses``, where the global batch comes in several micro-batches.

        Here ``context.mean`` notes its values and returns their mean over the micro-batch, which must enter no
        gradient.

        Returns:
            The losses that need no means, which go backward at once. And a function for the rest, called when all
            micro-batches have been here, with a context that knows the means: they are asked for in the same order.
            It should hold no more than states until then; its rows pass through their network again, with gradient.
            :attr:`freeflow_core.types.Loss.share` weighs the parts of one role's loss.
        """


class StatefulObjective(Objective):
    """One that remembers something between steps, besides its roles' weights: it is checkpointed."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """What to keep."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave."""


@dataclass(frozen=True)
class Transition:
    """A change the engine makes between steps: copy weights and restart optimizers, averages or schedules."""

    copy_from: str
    copy_to: str
    reset_optimizer: tuple[str, ...] = ()
    reset_ema: tuple[str, ...] = ()


class ObjectiveInRounds(StatefulObjective):
    """One that trains in rounds, each from what the round before left (progressive distillation)."""

    @abstractmethod
    def transitions(self, progress: Progress) -> Sequence[Transition]:
        """Changes due before this step; applied and checkpointed by the engine."""

    @abstractmethod
    def schedule_span(self, progress: Progress) -> tuple[int, int]:
        """(first, last) image of the round, which learning-rate schedules, warm-up included, run over."""
