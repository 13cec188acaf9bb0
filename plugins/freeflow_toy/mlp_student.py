"""A residual MLP for vector states."""

from __future__ import annotations

import math
from typing import final

from torch import Tensor, nn

from freeflow_core.interfaces import AverageVelocityStudent
from freeflow_core.math.flow import average_velocity_jump
from freeflow_core.types import Condition
from freeflow_toy.trunk import MLPTrunk


@final
class MLPStudent(MLPTrunk, AverageVelocityStudent):
    """u(x_t, t, s, c, w) from one residual MLP.

    Args:
        sample_shape: dimensions ``*D`` of one state.
        num_classes: classes, or None for an unconditional student.
        width, depth, num_frequencies, zero_init: see :class:`freeflow_toy.config.MLPStudentConfig`.
    """

    family = "toy-mlp"
    kind = "mlp"

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        num_classes: int | None,
        *,
        width: int = 128,
        depth: int = 3,
        num_frequencies: int = 3,
        zero_init: bool = False,
    ) -> None:
        super().__init__(
            sample_shape,
            num_classes,
            math.prod(sample_shape),
            width=width,
            depth=depth,
            num_frequencies=num_frequencies,
            others={},
        )
        if zero_init:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        return self.features(x_t, t, s, condition, guidance).reshape(x_t.shape)

    def average_velocity(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return output

    def jump(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return average_velocity_jump(x_t, output, t, s)
