"""A noise-predicting diffusion transformer (DiT), as a velocity on the linear path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext
from freeflow_core.math.derivative import full_precision
from freeflow_core.math.flow import expand_times
from freeflow_core.types import Condition
from freeflow_transformers.config import DiTTeacherConfig
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.released.loading import load_teacher_network
from freeflow_transformers.released.probe import judge_alignment, noise_alignment
from freeflow_transformers.released.schedule import DiffusionSchedule, scale_to_unit_variance
from freeflow_transformers.teachers import NetworkTeacher


@final
class NoiseTeacher(NetworkTeacher):
    """v(x_t, t, c) of a network that predicts the noise e of a discrete schedule (Peebles & Xie 2022).

    At equal signal-to-noise ratio x_vp = c x_t with c = 1 / sqrt((1 - t)^2 + t^2); the network is asked at x_vp and at
    the fractional step of t, and :func:`velocity_from_noise` does the rest. Euler steps of this field between the
    schedule's own times are DDIM steps (Song et al. 2021, arXiv 2010.02502, eq. 12 with sigma = 0).

    Beyond the first and the last step (t = 0.0099 and 0.9937 for DiT) the field is continued constantly in t.
    ``time_range`` are these ends: objectives that choose their own states stay between them, where state and step
    belong together; a sampler that starts at t = 1 uses the continuation.

    Near the last step 1 / (1 - t) amplifies errors of e up to 158 times. So the network runs in float32 at least,
    without autocast and TF32, whatever the run's precision.

    Args:
        network: predicts the noise; see :class:`NetworkTeacher`.
        schedule: its steps.
        guidance_channels, provenance: see :class:`NetworkTeacher`.

    Raises:
        ConfigError: the network is a student, or predicts a velocity.
    """

    def __init__(
        self,
        network: DiffusionTransformer,
        schedule: DiffusionSchedule,
        *,
        guidance_channels: int | None = None,
        provenance: str = "",
    ) -> None:
        super().__init__(network, guidance_channels=guidance_channels, provenance=provenance)
        if network.config.prediction != "noise":
            raise ConfigError("This network predicts a velocity, not the noise. Use it as the teacher `sit`.")
        self.schedule = schedule
        self.time_range = schedule.time_range

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        """Raises ``CheckpointError`` for a file that is missing, damaged or of another family."""
        assert isinstance(config, DiTTeacherConfig)
        loaded = load_teacher_network(config, context)
        schedule = DiffusionSchedule(config.diffusion_steps, config.beta_start, config.beta_end)
        teacher = cls(loaded.network, schedule, guidance_channels=loaded.guidance_channels).to(context.device)
        teacher.provenance = loaded.provenance
        teacher.codec = loaded.codec
        if loaded.is_published:
            last = torch.full((2,), schedule.time_range[1], dtype=torch.float64)
            alignment = noise_alignment(
                lambda z, labels: teacher.noise(z, last, labels),
                teacher.sample_shape,
                teacher.num_classes,
                context.device,
            )
            teacher.provenance += f"; {judge_alignment(alignment, str(loaded.origin), 'predicts the noise')}"
        return teacher

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        t = self.schedule.held(t)
        x = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        return velocity_from_noise(self.noise(x, t, condition), x, t).to(x_t.dtype)

    def noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """e (N, C, H, W) for states ``x_t`` of the linear path at ``t`` (N,) within ``time_range``."""
        with full_precision(x_t), _exact_convolutions():
            x_vp = expand_times(scale_to_unit_variance(t), x_t) * x_t
            output: Tensor = self.network(x_vp, self.schedule.step(t), condition)
        return output[:, : self.sample_shape[0]]


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """No TF32 in the patch embedding, where PyTorch allows it by default."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def velocity_from_noise(noise: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """v = e - x_hat = (e - x_t) / (1 - t), since x_t = (1 - t) x_hat + t e; (N, *D), for ``t`` (N,) < 1."""
    return (noise - x_t) * expand_times((1 - t).reciprocal(), x_t)
