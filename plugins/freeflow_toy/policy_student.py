"""A residual MLP that emits a policy for vector states."""

from __future__ import annotations

import math
from typing import Literal, final

import torch
from torch import Tensor

from freeflow_core.interfaces import PolicyStudent
from freeflow_core.math.policies import DXPolicy, GMPolicy, Policy
from freeflow_core.types import Condition
from freeflow_toy.trunk import MLPTrunk


@final
class MLPPolicyStudent(MLPTrunk, PolicyStudent):
    """A policy over [s, t] from one residual MLP (Chen et al. 2025, arXiv 2510.14974, section 3.2).

    ``forward`` gives (N, P) numbers: K velocities, and for ``gm`` K logits and one logarithm of a deviation besides.
    The first dimension of a state holds the mixture's channels; places along the others share its logits.

    Args:
        sample_shape: dimensions ``*D`` of one state.
        num_classes: classes, or None for an unconditional student.
        policy: the kind of policy.
        num_components: K, components of the mixture or points of the DX policy.
        initial_std: deviation of the mixture's components at the start, in units of velocity.
        shift, num_substeps: see :class:`freeflow_core.interfaces.PolicyStudent`.
        width, depth, num_frequencies: of the network.
    """

    family = "toy-mlp-policy"
    kind = "mlp-policy"

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        num_classes: int | None,
        *,
        policy: Literal["dx", "gm"] = "gm",
        num_components: int | None = None,
        initial_std: float = 0.5,
        shift: float = 1.0,
        num_substeps: int = 128,
        width: int = 128,
        depth: int = 3,
        num_frequencies: int = 3,
    ) -> None:
        dim = math.prod(sample_shape)
        components = num_components or (10 if policy == "dx" else 32)
        super().__init__(
            sample_shape,
            num_classes,
            components * dim if policy == "dx" else components * (dim + 1) + 1,
            width=width,
            depth=depth,
            num_frequencies=num_frequencies,
            others={
                "policy": policy,
                "num_components": components,
                "initial_std": initial_std,
                "shift": shift,
                "num_substeps": num_substeps,
            },
        )
        self.shift, self.num_substeps = shift, num_substeps
        self._kind, self._split = policy, (components * dim, components)
        if policy == "gm":
            with torch.no_grad():
                self.head.weight[-1].zero_()
                self.head.bias[-1].fill_(math.log(initial_std))

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        return self.features(x_t, t, s, condition, guidance)

    def policy(self, output: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Policy:
        num, (ends, components) = len(output), self._split
        velocities = output[:, :ends].reshape(num, components, *self.sample_shape)
        if self._kind == "dx":
            return DXPolicy(velocities, x_t, t, s, shift=self.shift)
        logits = output[:, ends : ends + components].reshape(num, components, *([1] * len(self.sample_shape)))
        return GMPolicy(velocities, logits, output[:, -1], x_t, t)
