"""From a network's own time and sign to this project's: t = 0 data, v = dx_t/dt = noise - data.

Released networks differ in both (see ``docs/reference/checkpoints.md``). The architecture stored with the weights says
which is whose, so the weights are never altered and a student that starts from a teacher keeps its convention.
"""

from __future__ import annotations

from torch import Tensor

from freeflow_transformers.architecture import TransformerConfig


def own_time(architecture: TransformerConfig, t: Tensor) -> Tensor:
    """What the network is fed for times ``t`` (N,): t itself, or 1 - t where its data is at 1.

    A duration t - s is the same positive number in both directions and needs no conversion.
    """
    return 1 - t if architecture.time_direction == "data-at-1" else t


def velocity(architecture: TransformerConfig, output: Tensor) -> Tensor:
    """noise - data (N, C, H, W) of the raw output (N, C or 2C, H, W): its first C channels, negated where needed.

    The same for an average velocity, which is a mean of such velocities.
    """
    first = output[:, : architecture.channels]
    return -first if architecture.sign == "data-minus-noise" else first
