"""A teacher that is guided by a weaker version of itself."""

from typing import Self, final

from torch import Tensor

from freeflow_core.config.component import ComponentChoice
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext, Teacher
from freeflow_core.math.flow import extrapolate, filled_up
from freeflow_core.objective_kit.passes import asked_rows, take
from freeflow_core.types import Condition, Draws, NetworkState, index_condition
from freeflow_guidance.config import AutoguidanceConfig


@final
class AutoguidedTeacher(Teacher):
    """v_guide + w (v_main - v_guide), both with the same condition (Karras et al. 2024, eq. 3).

    The guide is asked for rows whose weight is not 1 alone, once each, so that a guided evaluation costs one pass of
    either network. Neither needs a null class. Everything else is the main teacher's, its guidance channels included.

    Raises ``ConfigError``: two teachers that do not describe the same data.
    """

    def __init__(self, main: Teacher, guide: Teacher) -> None:
        super().__init__()
        for what, ours, theirs in (
            ("states of shape", tuple(main.sample_shape), tuple(guide.sample_shape)),
            ("classes:", main.num_classes, guide.num_classes),
        ):
            if ours != theirs:
                raise ConfigError(
                    f"The guide does not describe the teacher's data: it has {what} {theirs}, the teacher {ours}. "
                    "Choose a weaker version of the same teacher as teacher.guide."
                )
        self.main = main
        self.guide = guide
        self.sample_shape = main.sample_shape
        self.num_classes = main.num_classes
        self.guidance_channels = main.guidance_channels
        self.time_range = (max(main.time_range[0], guide.time_range[0]), min(main.time_range[1], guide.time_range[1]))

    @classmethod
    def from_config(cls, config: AutoguidanceConfig, context: BuildContext) -> Self:
        def teacher(choice: ComponentChoice) -> Teacher:
            options = choice.model_dump()
            built: Teacher = context.component("teacher", options.pop("name"), options)
            return built

        return cls(teacher(config.main), teacher(config.guide))

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.main.velocity(x_t, t, condition)

    def guided_velocity(self, x_t: Tensor, t: Tensor, condition: Condition, weight: Tensor) -> Tensor:
        """Autoguidance; arguments as in :class:`Teacher`."""
        field = self.main.velocity(x_t, t, condition)
        rows = (weight != 1).nonzero().flatten()
        asked = asked_rows(rows, self.is_divided)
        if not len(asked):
            return field
        if self.is_compiled:
            asked = filled_up(asked, len(x_t))
        baseline = self.guide.velocity(take(x_t, asked), take(t, asked), index_condition(condition, asked))
        if not len(rows):
            return field
        return extrapolate(field, baseline[: len(rows)], rows, weight, self.guidance_channels)

    def null_condition(self, condition: Condition) -> Condition:
        return self.main.null_condition(condition)

    def sample_condition(self, draws: Draws) -> Condition:
        return self.main.sample_condition(draws)

    def balanced_condition(self, index: Tensor) -> Condition:
        return self.main.balanced_condition(index)

    def student_copy(self, *, share_weights: bool) -> Teacher:
        return self.main.student_copy(share_weights=share_weights)

    def network_state(self) -> NetworkState | None:
        return self.main.network_state()
