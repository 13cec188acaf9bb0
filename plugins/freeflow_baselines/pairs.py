"""Training on pairs: a noise, and where the teacher's trajectory takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from freeflow_baselines.config_generative import PairsConfig
from freeflow_baselines.pair_cache import PairCache
from freeflow_baselines.rows import draw_guidance, root_mean_square
from freeflow_baselines.teacher_path import end_point
from freeflow_core.config import ComponentConfig
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import (
    AverageVelocityStudent,
    BuildContext,
    Context,
    Models,
    Objective,
    Role,
    StartTimes,
    Student,
    Teacher,
)
from freeflow_core.math.flow import like_states, linear_interpolate, linear_velocity, mean_square
from freeflow_core.objective_kit.passes import velocity_with_gradient
from freeflow_core.types import Batch, Condition, Draws, Loss, Progress


@final
@dataclass(frozen=True)
class Pairs:
    """N noises ``z`` (N, *D) with their ends ``x`` (N, *D), conditions, and guidance weights (N,) on the host."""

    z: Tensor
    x: Tensor
    condition: Condition
    guidance: Tensor


@final
class PairRegression(Objective):
    """Regression on pairs (z, x) of the teacher: x = ODE(z).

    endpoint: min E || X(z, 1, 0) - x ||^2, knowledge distillation (Luhman & Luhman 2021, arXiv 2101.02388). Zero
    exactly when every noise goes where the teacher takes it; with too little capacity or few pairs the squares blur.

    rectified-flow: min E || u(x_t, t, s) - (z - x) ||^2 with x_t = (1 - t) x + t z (Liu et al. 2022, arXiv 2209.03003,
    eq. 1; one reflow). Its minimiser is the velocity of a flow with the same marginals and straighter paths, straight
    where no two of the pairs' lines cross; one Euler step is then a jump. Ours: s is uniform on (0, t), so that a flow
    map learns that one velocity for jumps of every length.

    Cost: F + B, and to make the pairs online K T with euler, 2 K T with heun, for K steps (T = F, 2F where guided);
    nothing more with a cache. Left out: the LPIPS distance that both papers' images need to stay sharp.

    Random streams: ``prior``, ``guidance``, the teacher's own for conditions; ``pair`` with a cache; ``time``,
    ``end-time``.
    """

    def __init__(self, config: PairsConfig, cache: PairCache | None = None) -> None:
        straight = config.mode == "rectified-flow"
        self._config = config
        self._cache = cache
        self.needs_teacher = cache is None
        self.requires = AverageVelocityStudent if straight else Student
        self.start_times = StartTimes.ANY if straight else StartTimes.PRIOR

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        """Raises ``CheckpointError`` for a cache that is missing, damaged, or holds no pairs."""
        assert isinstance(config, PairsConfig)
        return cls(config, None if config.cache is None else PairCache.read(config.cache))

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        """None; but the cache must fit the student. Raises ``ConfigError``."""
        if self._cache is not None:
            shape, classes = tuple(self._cache.noise.shape[1:]), self._cache.num_classes
            if shape != tuple(student.sample_shape) or classes != student.num_classes:
                raise ConfigError(
                    f"The pairs in {self._config.cache} are states {shape} of {classes or 'no'} classes, the student "
                    f"works on {tuple(student.sample_shape)} of {student.num_classes or 'no'} classes. Write the pairs "
                    "with this run's teacher."
                )
        return {}

    def losses(
        self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context
    ) -> dict[str, Loss]:
        pairs = self._made(models.teacher, batch, draws) if self._cache is None else self._kept(self._cache, draws)
        residual = (self._straight if self._config.mode == "rectified-flow" else self._end)(models, pairs, draws)
        return {"student": Loss(mean_square(residual), {"pair_residual": root_mean_square(residual)})}

    def _end(self, models: Models, pairs: Pairs, draws: Draws) -> Tensor:
        """X(z, 1, 0) - x, (N, *D)."""
        student, one = models["student"], torch.ones_like(pairs.guidance)
        t, s, guidance = (like_states(values, pairs.z) for values in (one, 0 * one, pairs.guidance))
        output = student.wrapped(pairs.z, t, s, pairs.condition, guidance)
        reached: Tensor = student.bare.jump(output, pairs.z, one, 0 * one)
        return reached.to(pairs.x.dtype) - pairs.x

    def _straight(self, models: Models, pairs: Pairs, draws: Draws) -> Tensor:
        """u(x_t, t, s) - (z - x), (N, *D)."""
        t = draws.uniform("time")
        at = like_states(t, pairs.z)
        x_t = linear_interpolate(pairs.x, pairs.z, at)
        s = draws.uniform("end-time") * t
        u = velocity_with_gradient(models["student"], x_t, t, s, pairs.condition, pairs.guidance)
        return u - linear_velocity(pairs.x, pairs.z)

    def _made(self, teacher: Teacher, batch: Batch, draws: Draws) -> Pairs:
        z, guidance = draws.noise("prior", teacher.sample_shape), draw_guidance(draws, self._config)
        condition = teacher.sample_condition(draws) if batch.condition is None else batch.condition
        return Pairs(z, end_point(teacher, z, condition, guidance, self._config), condition, guidance)

    @staticmethod
    def _kept(cache: PairCache, draws: Draws) -> Pairs:
        rows = draws.integers("pair", len(cache.noise))
        z, x = (states[rows].to(draws.device, draws.dtype, non_blocking=True) for states in (cache.noise, cache.data))
        return Pairs(z, x, None if cache.labels is None else cache.labels[rows], cache.guidance[rows])
