"""The table at the end of a run: one row per way of sampling, scored by every evaluator."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import tee
from typing import Any, final

import torch
from torch import Tensor

from freeflow_core.config import ComponentChoice, RunConfig
from freeflow_core.config.run import EvaluationConfig
from freeflow_core.engine.build import Builder
from freeflow_core.errors import ConfigError, FreeflowError, PluginError
from freeflow_core.evaluation.sampling import Generator, SampleBatch, SampleStream, blocks, make_generator
from freeflow_core.evaluation.teacher_samples import TeacherSamples, read_named
from freeflow_core.interfaces import EvaluationBatch, EvaluationContext, Evaluator, StartTimes
from freeflow_core.interfaces.journal import EVALUATION
from freeflow_core.types import Scores, describe, index_condition

_log = logging.getLogger("freeflow")

OnAdvance = Callable[[str, int, int], None]

COST_COLUMNS = ("evaluations", "ms_per_image")
DATA, FLOOR, TEACHER, TEACHER_1 = "data", "teacher_floor", "teacher", "teacher_1_step"
STUDENT, JUMP = "student", "student_jump"

_FEW_STEP = {
    StartTimes.ANY: ComponentChoice(name="few-step"),
    StartTimes.ANY_TO_DATA: ComponentChoice(name="few-step", options={"renoise": True}),
}
"""How a student of each kind takes several steps; one that jumps from the prior alone cannot."""


def metric_name(row: str, score: str) -> str:
    """The name under which a run reports a score of a row to observers, journal and trackers."""
    return f"{EVALUATION}{row}/{score}"


@dataclass(frozen=True)
class Reference:
    """The many-step teacher's end points ``x`` (n, *D) and images for samples 0 ... n - 1."""

    x: Tensor
    images: Tensor
    scores: Mapping[str, float]


@dataclass
class SharedRows:
    """What evaluations of one teacher's students have in common: made by the first of them, taken by the others.

    ``rows`` are those of the data and the teacher; the settings, the seed and the number of samples must agree.
    """

    reference: Reference | None = None
    rows: Scores = field(default_factory=dict)


@final
class Evaluation:
    """Scores rows. The many-step teacher is sampled once and kept, for paired comparison and for pictures.

    Distributions are compared on noise that the reference did not use, so that pairing cannot flatter a distance.
    The processes of the builder's crew sample together, and each scores all that they drew: it is called on all alike.

    Args:
        shared: rows that do not depend on the student, for several evaluations to make once.
    """

    def __init__(
        self,
        config: RunConfig,
        builder: Builder,
        context: EvaluationContext,
        *,
        on_advance: OnAdvance | None = None,
        shared: SharedRows | None = None,
    ) -> None:
        self._run, self.config = config, config.evaluation
        self._builder = builder
        self._context = context
        self._teacher, self._student = context.teacher, context.student
        self._on_advance: OnAdvance = on_advance or (lambda row, done, total: None)
        network: Any = context.student or context.teacher
        self._named = build_evaluators(self.config, builder, context, network.sample_shape)
        self._evaluators = [evaluator for _, evaluator in self._named]
        self._reference: Reference | None = None
        self._shared = SharedRows() if shared is None else shared

    def check(self) -> None:
        """Score two samples of the student, or of the teacher, so that what does not fit shows before training.

        Raises:
            ConfigError: an evaluator that refuses such samples.
            PluginError: one that breaks on them.
        """
        sampler = "one-step" if self._student is not None else "euler"
        check_evaluators(self._named, self._generator(sampler, 1).batch(torch.arange(2)).shown())

    def all_rows(self) -> Scores:
        """The whole table, cheapest reading order: data, teacher, then whatever the student can do."""
        scores: Scores = {}
        if data := self._shared_row(DATA, self.data_row):
            scores[DATA] = data
        if self._teacher is not None:
            reference = self.reference()
            if floor := self._shared.rows.get(FLOOR):
                scores[FLOOR] = dict(floor)
            scores[TEACHER] = dict(reference.scores)
            scores[TEACHER_1] = self._shared_row(TEACHER_1, lambda: self.row(TEACHER_1, self._generator("euler", 1)))
        if self._student is not None:
            scores[STUDENT] = self.student_row()
            if (few_step := _FEW_STEP.get(self._student.start_times)) is not None:
                for steps in self.config.few_steps:
                    name = f"student_{steps}_steps"
                    scores[name] = self.row(name, self._generator(few_step, steps))
            if self._teacher is not None:
                scores[JUMP] = self.row(JUMP, self._generator("student-then-teacher", self.config.jump_steps))
        return scores

    def student_row(self) -> dict[str, float]:
        """The student in one step."""
        if self._teacher is not None:
            self.reference()
        return self.row(STUDENT, self._generator("one-step", 1))

    def reference(self) -> Reference:
        """The many-step teacher's samples and scores, computed once; with them its row on other noise."""
        if self._reference is not None:
            return self._reference
        number, unpaired = self.config.num_samples, self._started(TEACHER, paired=False)
        if (known := self._shared.reference) is not None:
            for batch in self._batches(known.x, known.images, unpaired):
                for evaluator in unpaired:
                    evaluator.observe_reference(batch)
            self._reference = known
            return known
        x, images, cost = self._teacher_samples()
        for batch in self._batches(x, images, unpaired):
            for evaluator in unpaired:
                evaluator.observe_reference(batch)
                evaluator.update(batch)
        self._reference = self._shared.reference = Reference(x[:number], images[:number], cost | _computed(unpaired))
        if self.config.floor:
            unpaired = self._started(FLOOR, paired=False)
            for batch in self._batches(x, images, unpaired, number):
                for evaluator in unpaired:
                    evaluator.update(batch)
            self._shared.rows[FLOOR] = {"evaluations": cost["evaluations"]} | _computed(unpaired)
        return self._reference

    def _teacher_samples(self) -> tuple[Tensor, Tensor, dict[str, float]]:
        """End points, images and what they cost; from an earlier run where one has drawn the same.

        ``num_samples`` of them, and as many again for the row on other noise.
        """
        assert self._teacher is not None
        number, size = self.config.num_samples * (2 if self.config.floor else 1), self.config.batch_size
        kept = TeacherSamples(self._run, self._teacher, number, self._builder.precision)
        if (found := self._builder.crew.from_main(kept.load)) is not None:
            x, evaluations = found[0].to(self._context.device), found[1]
            decode = self._context.codec.decode
            pieces = (partial(decode, part) for part in torch.split(x, size))
            images = torch.cat(list(self._builder.crew.shared(pieces))) if x.ndim == 4 else x
            return x, images, {"evaluations": evaluations}
        generator = self._generator(self.config.reference_sampler, self.config.reference_steps)
        batches: list[SampleBatch] = []
        for batch in generator.batches(0, number, size):
            batches.append(batch)
            self._on_advance(TEACHER, int(batch.index[-1]) + 1, number)
        cost, x = _cost(batches), torch.cat([batch.x for batch in batches])
        if self._builder.crew.is_main_process:
            kept.save(x, cost["evaluations"])
        return x, torch.cat([batch.images for batch in batches]), cost

    def _batches(
        self, x: Tensor, images: Tensor, evaluators: Sequence[Evaluator], start: int = 0
    ) -> Iterator[EvaluationBatch]:
        """Samples from ``start`` on, ``num_samples`` of them, as ``evaluators`` see them."""

        def batch(rows: Tensor) -> EvaluationBatch:
            condition = self._teacher.balanced_condition(rows) if self._teacher is not None else None
            return EvaluationBatch(images[rows], condition, index=rows, x=x[rows])

        return self._extracted(map(batch, blocks(start, self.config.num_samples, self.config.batch_size)), evaluators)

    def _extracted(
        self, batches: Iterable[EvaluationBatch], evaluators: Sequence[Evaluator]
    ) -> Iterator[EvaluationBatch]:
        """Batches that every process has, with what ``evaluators`` memorise of each on one of them."""

        def memo(batch: EvaluationBatch) -> dict[str, Any]:
            _extract(evaluators, batch)
            return batch._memo

        ahead, batches = tee(batches)
        memos = self._builder.crew.shared(partial(memo, batch) for batch in ahead)
        for found, batch in zip(memos, batches, strict=True):
            yield replace(batch, _memo=found)

    def data_row(self) -> dict[str, float]:
        """Training images scored like samples: the floor that sampling noise sets. Empty without training images."""
        data = self._context.reference
        found = data.training_images() if data is not None else None
        if found is None or not self._evaluators:
            return {}
        images, labels = found
        unpaired = self._started(DATA, paired=False)
        rows = blocks(0, len(images), self.config.batch_size)
        batches = (EvaluationBatch(images[part], index_condition(labels, part)) for part in rows)
        for batch in self._extracted(batches, unpaired):
            for evaluator in unpaired:
                evaluator.update(batch)
        return _computed(unpaired)

    def row(self, name: str, generator: SampleStream) -> dict[str, float]:
        """One row: paired evaluators on the reference's noise, the others on fresh noise."""
        number, size = self.config.num_samples, self.config.batch_size
        paired, unpaired = self._started(name, paired=True), self._started(name, paired=False)
        if paired and self._reference is not None:
            for batch in generator.batches(0, self.config.pairs, size, partial(_extract, paired)):
                shown = batch.shown(self._reference.x[batch.index.to(self._reference.x.device)])
                for evaluator in paired:
                    evaluator.update(shown)
        fresh: list[SampleBatch] = []
        for batch in generator.batches(number, number, size, partial(_extract, unpaired)):
            fresh.append(batch)
            shown = batch.shown()
            for evaluator in unpaired:
                evaluator.update(shown)
            self._on_advance(name, int(batch.index[-1]) + 1 - number, number)
        return _cost(fresh) | _computed(self._evaluators)

    def _started(self, row: str, *, paired: bool) -> list[Evaluator]:
        """The evaluators of a kind, at the start of a row."""
        chosen = [evaluator for evaluator in self._evaluators if evaluator.paired == paired]
        for evaluator in chosen:
            evaluator.reset(row)
        return chosen

    def _shared_row(self, name: str, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        if name not in self._shared.rows:
            self._shared.rows[name] = compute()
        return dict(self._shared.rows[name])

    def _generator(self, sampler: ComponentChoice | str, num_steps: int) -> Generator:
        choice = ComponentChoice(name=sampler) if isinstance(sampler, str) else sampler
        return make_generator(self.config, self._builder, self._context, choice, num_steps)


SMALL_STATE = 4_096
"""Entries of a state up to which distances between raw states say something."""


def fitting_evaluators(shape: Sequence[int]) -> tuple[ComponentChoice, ...]:
    """What needs no features: for runs whose teacher has no preset that names better ones."""
    fidelity, energy = ComponentChoice(name="fidelity"), ComponentChoice(name="energy-distance")
    return (energy, fidelity) if math.prod(shape) <= SMALL_STATE else (fidelity,)


def build_evaluators(
    config: EvaluationConfig, builder: Builder, context: EvaluationContext, shape: Sequence[int]
) -> list[tuple[str, Evaluator]]:
    """The evaluators with their names, prepared.

    Raises ``ConfigError`` for what one of them misses, or when there is no file of the teacher's samples as named.
    """
    if config.teacher_samples is not None:
        read_named(config.teacher_samples, shapes_only=True)
    chosen = fitting_evaluators(shape) if config.evaluators is None else config.evaluators
    if config.evaluators is None:
        _log.info(
            f"Evaluators that fit states of shape {tuple(shape)}: {', '.join(choice.name for choice in chosen)}. Name "
            "others with --set 'evaluation.evaluators=[...]'."
        )
    evaluators: list[tuple[str, Evaluator]] = [(choice.name, builder.build("evaluator", choice)) for choice in chosen]
    for _, evaluator in evaluators:
        evaluator.prepare(context)
    return evaluators


def check_evaluators(evaluators: Iterable[tuple[str, Evaluator]], batch: EvaluationBatch) -> None:
    """Whether every evaluator takes such samples. Raises ``ConfigError`` or ``PluginError``, with its name."""
    for name, evaluator in evaluators:
        try:
            evaluator.reset(STUDENT)
            evaluator.extract(batch)
            evaluator.update(batch)
        except FreeflowError as error:
            raise ConfigError(
                f"The evaluator {name!r} cannot score samples of this run: {error} Name evaluators that fit with --set "
                "'evaluation.evaluators=[...]', or null to have them chosen."
            ) from error
        except Exception as error:
            raise PluginError(
                f"The evaluator {name!r} failed with {type(error).__name__} on the run's first two samples: "
                f"{' '.join(str(error).split())}. It was given images {describe(batch.images)} and states "
                f"{describe(batch.x)}."
            ) from error


def _extract(evaluators: Sequence[Evaluator], batch: EvaluationBatch) -> None:
    for evaluator in evaluators:
        evaluator.extract(batch)


def _computed(evaluators: Sequence[Evaluator]) -> dict[str, float]:
    return {name: value for evaluator in evaluators for name, value in evaluator.compute().items()}


def _cost(batches: list[SampleBatch]) -> dict[str, float]:
    total = sum(len(b.index) for b in batches)
    return {
        "evaluations": sum(b.num_evaluations * len(b.index) for b in batches) / total,
        "ms_per_image": 1000 * sum(b.seconds for b in batches) / total,
    }
