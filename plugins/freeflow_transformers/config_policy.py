"""Options of the transformer that emits a policy. Never imports torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from freeflow_core.config.component import Section
from freeflow_transformers.config import FlowMapTransformerConfig


class PolicyOptions(Section):
    """The policy and its head (Chen et al. 2025, arXiv 2510.14974, and its code); stored with the weights."""

    policy: Literal["dx", "gm"] = Field(
        "gm", description="gm: a Gaussian mixture of the data point; dx: the data point as a function of time."
    )
    num_components: PositiveInt | None = Field(
        None, description="Components of gm (paper: 32; 8 for text-to-image), or points of dx (10); null: 32 and 10."
    )
    initial_std: PositiveFloat = Field(
        0.05, description="gm: deviation of a component at the start, in units of velocity."
    )
    mean_noise: float = Field(
        0.05, ge=0, le=1, description="gm: deviation by which the components' velocities differ at the start."
    )
    std_width: PositiveInt = Field(1024, description="gm: hidden units of the layer that predicts the deviation.")
    shift: PositiveFloat = Field(
        1.0,
        description="Substeps, and the points of dx, are equal in tau, t = shift tau / (1 + (shift - 1) tau); 3.2 for "
        "text-to-image.",
    )
    num_substeps: PositiveInt = Field(128, description="Substeps of the policy's path per unit of tau.")

    @property
    def components(self) -> int:
        """K."""
        return self.num_components or (10 if self.policy == "dx" else 32)


class PolicyTransformerConfig(FlowMapTransformerConfig, PolicyOptions):
    """Options of the student ``policy-transformer``."""
