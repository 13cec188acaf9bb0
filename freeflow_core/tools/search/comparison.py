"""Best-of-N beside guided sampling that spends as much, and more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, pstdev
from typing import Self, final

import torch
from torch import Tensor

from freeflow_core.config import ComponentChoice, ComponentConfig, RunConfig
from freeflow_core.engine.build import Builder
from freeflow_core.evaluation.sampling import Generator
from freeflow_core.evaluation.scores import Evaluation
from freeflow_core.interfaces import (
    BuildContext,
    Codec,
    EvaluationContext,
    Source,
    Student,
    Teacher,
    VelocitySampler,
    Verifier,
)
from freeflow_core.tools.search.best_of_n import BestOfN
from freeflow_core.types import Condition, Draws, Guidance

_MOST_STEPS = 10_000


@dataclass(frozen=True)
class SearchPlan:
    """What to search with.

    Args:
        candidates: N noises a sample.
        sampler: the teacher's, by name.
        steps: the teacher's steps after the search.
        guidance_weight: the teacher's.
        student_guidance: the student's input while it screens.
        larger: budgets of plain guided sampling to compare with, as multiples of the search's evaluations.
    """

    candidates: int
    sampler: ComponentChoice
    steps: int
    guidance_weight: float
    student_guidance: float
    larger: tuple[float, ...] = (1.0, 1.6)


@dataclass(frozen=True)
class SearchRow:
    """One way of sampling: ``steps`` of the teacher, and each score's mean and deviation over the seeds."""

    steps: int
    scores: Mapping[str, tuple[float, float]]


@final
class Search:
    """Draws samples by best-of-N, and scores them beside plain sampling.

    Args:
        config: its ``evaluation`` says how many samples, which evaluators, and where guidance is on.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: SearchPlan,
        builder: Builder,
        *,
        student: Student,
        teacher: Teacher,
        codec: Codec,
        verifier: Verifier,
        reference: Source | None,
    ) -> None:
        self._config = config
        self._plan = plan
        self._builder = builder
        self._student = student
        self._teacher = teacher
        self._codec = codec
        self._verifier = verifier
        self._reference = reference
        verifier.prepare(EvaluationContext(builder.device, codec, teacher, student, reference))

    def stream(self, seed: int) -> BestOfN:
        """Samples by best-of-N."""
        screen = self._generator(ComponentChoice(name="one-step"), 1, self._plan.student_guidance, seed)
        return BestOfN(screen, self._sampled(self._plan.steps, seed), self._verifier, self._plan.candidates)

    def plain(self, seed: int, steps: int | None = None) -> Generator:
        """The teacher alone, in ``steps`` (None: as many as after the search)."""
        return self._sampled(steps or self._plan.steps, seed)

    def rows(self, seeds: Sequence[int]) -> dict[str, SearchRow]:
        """The search, plain sampling with the same steps, and with as many and more evaluations; mean over seeds."""
        paid = self.evaluations(self._plan.steps) + (self._plan.candidates if self._plan.candidates > 1 else 0)
        steps = {"same steps": self._plan.steps}
        steps |= {f"{times:g} x evaluations": self.steps_for(times * paid) for times in self._plan.larger}
        results: dict[str, list[dict[str, float]]] = {}
        for seed in seeds:
            config = self._config.model_copy(
                update={"evaluation": self._config.evaluation.model_copy(update={"seed": seed})}
            )
            # Each row is compared with real images, so no many-step reference is drawn.
            evaluation = Evaluation(
                config,
                self._builder,
                self._codec,
                teacher=self._teacher,
                student=self._student,
                reference_data=self._reference,
            )
            results.setdefault("search", []).append(evaluation.row("search", self.stream(seed)))
            for name, count in steps.items():
                results.setdefault(name, []).append(evaluation.row(name, self.plain(seed, count)))
        return {
            name: SearchRow(
                steps.get(name, self._plan.steps),
                {key: (mean(values), pstdev(values)) for key in rows[0] for values in [[row[key] for row in rows]]},
            )
            for name, rows in results.items()
        }

    def evaluations(self, steps: int) -> float:
        """Network evaluations a sample of the guided teacher costs in ``steps``: counted on a field that is free."""
        evaluation = self._config.evaluation
        generator = Generator(
            self._builder.build("sampler", self._plan.sampler),
            steps,
            self._codec,
            teacher=_NoField(self._teacher),
            seed=0,
            guidance_weight=self._plan.guidance_weight,
            guidance_low=evaluation.guidance_low,
            guidance_high=evaluation.guidance_high,
        )
        guidance = Guidance(
            torch.tensor([self._plan.guidance_weight], dtype=torch.float64),
            evaluation.guidance_low,
            evaluation.guidance_high,
        )
        sampler = generator.sampler
        assert isinstance(sampler, VelocitySampler)
        z = torch.zeros(1, *self._teacher.sample_shape)
        return sampler.sample(generator.model, z, generator.grid, None, guidance).num_evaluations

    def steps_for(self, evaluations: float) -> int:
        """The largest number of steps that costs at most ``evaluations``; at least 1."""
        low, high = 1, 2
        while high < _MOST_STEPS and self.evaluations(high) <= evaluations:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.evaluations(middle) <= evaluations else (low, middle)
        return low

    def _sampled(self, steps: int, seed: int) -> Generator:
        return self._generator(self._plan.sampler, steps, self._plan.guidance_weight, seed)

    def _generator(self, choice: ComponentChoice, steps: int, weight: float, seed: int) -> Generator:
        sampler = self._builder.build("sampler", choice)
        evaluation = self._config.evaluation
        return Generator(
            sampler,
            steps,
            self._codec,
            teacher=self._teacher if isinstance(sampler, VelocitySampler) else None,
            student=self._student,
            seed=seed,
            guidance_weight=weight,
            guidance_low=evaluation.guidance_low,
            guidance_high=evaluation.guidance_high,
            precision=self._builder.precision,
        )


@final
class _NoField(Teacher):
    """A field of zeros: a fixed-step sampler asks it as often as it would ask the teacher."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.sample_shape = teacher.sample_shape
        self.time_range = teacher.time_range

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        raise NotImplementedError("made here alone, from the teacher it stands for")

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return torch.zeros_like(x_t)

    def null_condition(self, condition: Condition) -> Condition:
        return None

    def sample_condition(self, draws: Draws) -> Condition:
        return None

    def balanced_condition(self, index: Tensor) -> Condition:
        return None
