"""Options of the samplers. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from freeflow_core.config.component import ComponentConfig


class OneStepConfig(ComponentConfig):
    """One jump has no options."""


class GridConfig(ComponentConfig):
    """The time grid of samplers that take several steps."""

    shift: PositiveFloat = Field(
        1.0, description="Grid times become shift t / (1 + (shift - 1) t); above 1: more steps near the noise."
    )


class FewStepConfig(GridConfig):
    """Options of several student jumps."""

    renoise: bool = Field(
        False,
        description="True: each jump goes to t = 0 and fresh noise leads to the next time; False: t to s directly.",
    )


class VelocityConfig(GridConfig):
    """What all velocity samplers share."""

    state_dtype: Literal["float32", "float64"] = Field(
        "float32",
        description="Precision of the state between steps; the network gets its own precision. A float64 teacher keeps "
        "float64.",
    )


class AdaptiveConfig(VelocityConfig):
    """Options of the adaptive solver."""

    rtol: PositiveFloat = Field(1e-5, description="Relative error allowed per step.")
    atol: PositiveFloat = Field(1e-5, description="Absolute error allowed per step.")
    max_steps: PositiveInt = Field(10_000, description="Steps after which the solver gives up with an error.")


class EulerConfig(VelocityConfig):
    """Options of Euler's method."""

    decide_at: Literal["step-start", "evaluation"] = Field(
        "step-start",
        description="Which time decides whether an evaluation is guided: the start of its step, or its own.",
    )


class HeunConfig(EulerConfig):
    """Options of Heun's method."""

    final_euler: bool = Field(
        False, description="Skip the second evaluation of the last step, as EDM and REPA do; the order drops there."
    )


class StudentThenTeacherConfig(HeunConfig):
    """Options of one student jump followed by the teacher."""

    then: Literal["euler", "heun"] = Field("heun", description="The teacher's method; final_euler is heun's alone.")
