"""Options of the samplers. No torch here."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from freeflow_core.config.component import ComponentConfig


class OneStepConfig(ComponentConfig):
    """One jump of the student from noise to data.

    Source: FreeFlow, Tong et al. 2025, arXiv 2511.19428
    """


class GridConfig(ComponentConfig):
    """The time grid of samplers that take several steps."""

    shift: PositiveFloat = 1.0
    """Grid times become shift t / (1 + (shift - 1) t); above 1: more steps near the noise."""


class FewStepConfig(GridConfig):
    """Several jumps of a student trained from any time, deterministic or with fresh noise.

    Source: Song et al. 2023, arXiv 2303.01469, algorithm 1; Geng et al. 2025, arXiv 2505.13447
    """

    renoise: bool = False
    """True: each jump goes to t = 0 and fresh noise leads to the next time; False: t to s directly."""


class VelocityConfig(GridConfig):
    """What all velocity samplers share."""

    state_dtype: Literal["float32", "float64"] = "float32"
    """Precision of the state between steps; the network gets its own precision. A float64 teacher keeps float64."""


class AdaptiveConfig(VelocityConfig):
    """Dormand-Prince 5(4) to a tolerance (torchdiffeq).

    Source: Dormand & Prince 1980; torchdiffeq
    """

    rtol: PositiveFloat = Field(1e-5, description="Relative error allowed per step.")
    atol: PositiveFloat = Field(1e-5, description="Absolute error allowed per step.")
    max_steps: PositiveInt = Field(10_000, description="Steps after which the solver gives up with an error.")


class EulerConfig(VelocityConfig):
    """Euler steps along the teacher's velocity; one evaluation per step.

    Source: SiT, Ma et al. 2024, arXiv 2401.08740
    """

    decide_at: Literal["step-start", "evaluation"] = "step-start"
    """Which time decides whether an evaluation is guided: the start of its step, or its own."""


class HeunConfig(EulerConfig):
    """Heun's method, second order; two evaluations per step.

    Source: Karras et al. 2022 (EDM), arXiv 2206.00364, algorithm 1
    """

    final_euler: bool = False
    """Skip the second evaluation of the last step, as EDM and REPA do; the order drops there."""


class StudentThenTeacherConfig(HeunConfig):
    """One student jump, then teacher steps: more compute for students trained from noise alone.

    Source: FreeFlow, Tong et al. 2025, arXiv 2511.19428
    """

    then: Literal["euler", "heun"] = Field("heun", description="The teacher's method; final_euler is heun's alone.")
