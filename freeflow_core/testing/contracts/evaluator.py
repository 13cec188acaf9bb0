"""What an evaluator promises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from freeflow_core.errors import FreeflowError
from freeflow_core.interfaces import EvaluationContext, Evaluator
from freeflow_core.testing.contracts.evaluation_scene import ROWS, EvaluationScene
from freeflow_core.testing.contracts.tensors import watched_random_state
from freeflow_core.types import describe


class EvaluatorContract(EvaluationScene):
    """Checks of an evaluator, on handwritten digits unless ``source`` and ``codec`` say otherwise.

    Attributes:
        networks: whether it needs a teacher and a student in its context; paired evaluators always get both.
    """

    kind: ClassVar[str] = "evaluator"
    networks: ClassVar[bool] = False

    def test_prepares(self) -> None:
        """``prepare`` takes the context of a run, with a codec and held-out data."""
        self.ready()

    def test_scores_are_finite_numbers_by_name(self) -> None:
        """``compute`` gives floats, at least one, for samples like those of a good student."""
        scores = self.scores([self.every()])
        self.expect(bool(scores), "at least one score", "none")
        for name, value in scores.items():
            self.expect(
                isinstance(name, str) and isinstance(value, float) and math.isfinite(value),
                f"the score {name!r} as a finite float",
                f"{describe(value)}" if not isinstance(value, float) else str(value),
                "Return float(value) from compute(); leave out a score that has no meaning for the row.",
            )

    def test_scores_do_not_depend_on_the_batches(self) -> None:
        """One batch of all samples and three of a third score alike."""
        every = self.every()
        whole = self.scores([every])
        self.compare(whole, self.scores([*every.chunk(3)]), "the same scores however samples are split into batches")

    def test_scores_are_repeatable(self) -> None:
        """Twice the same samples, twice the same scores; torch's global generator is not used."""
        evaluator, context = self.ready()
        with watched_random_state() as used:
            self.feed(evaluator, context, [self.every()], "student")
            first = dict(evaluator.compute())
        self.feed(evaluator, context, [self.every()], "student")
        self.compare(first, dict(evaluator.compute()), "the same scores for the same samples")
        self.expect(not used[0], "scores without torch's global random numbers", "global random numbers drawn")

    def test_reset_forgets_the_row_before(self) -> None:
        """A row's scores are those of its own samples alone."""
        every = self.every()
        few = every[: ROWS // 2]
        alone = self.scores([few])
        evaluator, context = self.ready()
        self.feed(evaluator, context, [every], "teacher")
        self.feed(evaluator, context, [few], "student")
        self.compare(alone, dict(evaluator.compute()), "the scores of the second row's own samples after reset()")

    def test_images_are_left_alone(self) -> None:
        """Evaluators share a batch: none may write to it."""
        evaluator, context = self.ready()
        batch = self.batch(context, self.every(), paired=evaluator.paired)
        kept = batch.images.clone()
        evaluator.reset("student")
        evaluator.update(batch)
        self.expect(torch.equal(batch.images, kept), "the batch's images as they were", "changed ones")

    # -- Helpers --------------------------------------------------------------------------------------------------

    def every(self) -> torch.Tensor:
        """Indices of all samples."""
        return torch.arange(ROWS)

    def ready(self) -> tuple[Evaluator, EvaluationContext]:
        """The evaluator, prepared, with a reference of the teacher's samples where it takes one."""
        evaluator: Evaluator = self.build()
        context = self.context(networks=self.networks or evaluator.paired)
        try:
            evaluator.prepare(context)
        except FreeflowError as error:
            self.fail(
                "prepare() to accept held-out digits, a codec and, if it is paired, teacher and student", str(error)
            )
        if not evaluator.paired:
            evaluator.observe_reference(self.batch(context, self.every().flip(0), paired=False))
        return evaluator, context

    def feed(
        self, evaluator: Evaluator, context: EvaluationContext, parts: Sequence[torch.Tensor], subject: str
    ) -> None:
        """One row of samples."""
        evaluator.reset(subject)
        for rows in parts:
            evaluator.update(self.batch(context, rows, paired=evaluator.paired))

    def scores(self, parts: Sequence[torch.Tensor]) -> dict[str, float]:
        """Scores of a student's row whose batches hold the given samples."""
        evaluator, context = self.ready()
        self.feed(evaluator, context, parts, "student")
        return dict(evaluator.compute())

    def compare(self, expected: Mapping[str, float], found: Mapping[str, float], what: str) -> None:
        """Fail unless both agree to 0.1 %."""
        self.expect(expected.keys() == found.keys(), f"the scores {sorted(expected)}", str(sorted(found)))
        for name, value in expected.items():
            close = math.isclose(value, found[name], rel_tol=1e-3, abs_tol=1e-6)
            self.expect(close, f"{what}: {name} = {value:.6g}", f"{found[name]:.6g}")
