"""Is the student better than a single step of its teacher? Asked early in a run and at its end, at little cost."""

import logging
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from freeflow_core.config import ComponentChoice, RunConfig
from freeflow_core.engine.build import Builder
from freeflow_core.evaluation.sampling import make_generator
from freeflow_core.evaluation.teacher_samples import TeacherSamples
from freeflow_core.interfaces import EvaluationContext
from freeflow_core.math.distances import energy_distance

_log = logging.getLogger("freeflow")
_MOST, _LEAST = 256, 64
_IMAGES_A_SAMPLE = 128
"""A sample costs at most 16 passes of the teacher and three single steps, an image of training about five: 3 %."""
_STEPS = 8
_EARLY, _LATER = 0.1, 0.25
_MARGIN = 1.1
"""Distances of a few hundred samples are not more exact than this."""


@dataclass(frozen=True)
class SingleStep:
    """Energy distances of single steps, the student's and the teacher's own, to the teacher's samples.

    ``images``: how far training had come.
    """

    images: int
    student: float
    teacher: float

    @property
    def is_worse(self) -> bool:
        """Whether the student's is clearly further away; one that is not finite is."""
        return not self.student <= _MARGIN * self.teacher

    def __str__(self) -> str:
        verdict = "further from" if self.is_worse else "closer to" if self.student < self.teacher else "as far from"
        return (
            f"After {self.images:,} images the student's single step is {verdict} the teacher's samples "
            f"{'as' if verdict == 'as far from' else 'than'} the teacher's own single step (energy distance "
            f"{self.student:.3g} against {self.teacher:.3g})"
        )


@final
class SingleSteps:
    """Looks at a student with noise of its own and the run's guidance, without decoding anything.

    The teacher's samples are those of the file that the run names, or Heun's in eight steps, had once; training draws
    nothing from what is drawn here.

    Attributes:
        first_look: images after which the first look is due: a tenth of the run, or a quarter where the student starts
            from random weights. None: no look, for it is switched off, the run has no teacher, or it is too short.
    """

    def __init__(self, config: RunConfig, builder: Builder, context: EvaluationContext, *, starts_random: bool) -> None:
        self._config, self._builder, self._context = config, builder, context
        self._starts_random = starts_random
        self._num = min(_MOST, config.training.images // _IMAGES_A_SAMPLE)
        asked = config.evaluation.single_step and context.teacher is not None and context.student is not None
        share = _LATER if starts_random else _EARLY
        self.first_look = round(share * config.training.images) if asked and self._num >= _LEAST else None
        self._teacher: tuple[Tensor, float] | None = None
        self.looks: list[SingleStep] = []

    def look(self, images: int) -> SingleStep:
        """Compare now; a student that is worse is told with the likely causes."""
        if self._teacher is None:
            reference = self._teacher_states()
            self._teacher = reference, energy_distance(self._states("euler", 1, 0), reference)
        reference, distance = self._teacher
        found = SingleStep(images, self._distance(self._states("one-step", 1, 0), reference), distance)
        self.looks.append(found)
        if found.is_worse:
            _log.warning("%s. %s", found, self.causes())
        return found

    def causes(self) -> str:
        """Why a student may be worse, likely ones first, as far as the run knows itself."""
        student, training = self._context.student, self._config.training
        causes = []
        if self._starts_random:
            causes.append("it started from random weights and needs more images")
        if self._config.evaluation.use_ema and training.ema.rampup_ratio is None:
            causes.append("the scored average still holds old weights: set training.ema.rampup_ratio")
        if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p for m in (student.modules() if student else ())):
            causes.append("layers that act otherwise in training, such as dropout, change what is scored")
        causes += [
            "the steps are too large: lower training.optimizer.learning_rate, or set training.optimizer.clip_norm",
            "the teacher is read wrongly: `freeflow teacher check`",
            "the student cannot tell its jumps apart: look at how s and t enter it, `freeflow plugins check`",
        ]
        return f"Likely causes, in order: {'; '.join(f'({i}) {cause}' for i, cause in enumerate(causes, 1))}."

    def _teacher_states(self) -> Tensor:
        """End points from noise that the single steps do not start from."""
        assert self._context.teacher is not None
        kept = TeacherSamples(self._config, self._context.teacher, 2 * self._num, self._builder.precision)
        found = self._builder.crew.from_main(kept.named)
        return self._states("heun", _STEPS, self._num) if found is None else found[0][self._num :]

    def _states(self, sampler: str, steps: int, first: int) -> Tensor:
        """End points of samples ``first`` ... of one of the networks, on the host."""
        evaluation = self._config.evaluation
        generator = make_generator(evaluation, self._builder, self._context, ComponentChoice(name=sampler), steps)
        index = torch.arange(first, first + self._num)
        return generator.drawn(index, evaluation.batch_size, decode=False)[0].cpu()

    @staticmethod
    def _distance(x: Tensor, reference: Tensor) -> float:
        return energy_distance(x, reference) if bool(x.isfinite().all()) else float("inf")
