"""What evaluators, verifiers and distances promise. They look at handwritten digits, which come with freeflow."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from freeflow_core.errors import FreeflowError
from freeflow_core.interfaces import Source, Student
from freeflow_core.interfaces.codec import Codec, Distance
from freeflow_core.interfaces.evaluator import EvaluationBatch, EvaluationContext, Evaluator, Verifier
from freeflow_core.testing.contracts.base import WithTeacher, choose, draws_of
from freeflow_core.types import Condition, Guidance, describe, index_condition

_ROWS, _FEW = 48, 12
_EVERY = torch.arange(_ROWS)


class EvaluationScene(WithTeacher):
    """How the contracts of evaluators and verifiers get what they look at.

    Attributes:
        source, source_options: where held-out images come from.
        codec: of these images.
        student, student_options: the student beside the teacher.
    """

    teacher: ClassVar[str | None] = "digits"
    source: ClassVar[str] = "digits"
    source_options: ClassVar[Mapping[str, Any]] = {}
    codec: ClassVar[str] = "pixels"
    student: ClassVar[str] = "transformer"
    student_options: ClassVar[Mapping[str, Any]] = {}

    def prepare(self, component: Evaluator | Verifier, *, networks: bool = False) -> EvaluationContext:
        """The context that ``component`` was prepared with; ``networks``: with teacher and student."""
        builder = self.builder()
        codec: Codec = builder.build("codec", choose(self.codec))
        reference: Source = builder.build("source", choose(self.source, self.source_options))
        context = EvaluationContext(builder.device, codec, reference=reference)
        if networks:
            teacher = self.build_teacher(self.teachers()[0])
            student: Student = builder.build("student", choose(self.student, self.student_options), teacher=teacher)
            student.load_teacher(teacher)
            context = replace(context, teacher=teacher, student=student.float().eval())
        try:
            component.prepare(context)
        except FreeflowError as error:
            self.fail(f"prepare() to accept held-out digits, a codec{', teacher and student' * networks}", str(error))
        return context

    def real_images(self, context: EvaluationContext, rows: int = _ROWS) -> tuple[Tensor, Condition]:
        assert context.reference is not None
        found = context.reference.held_out() or context.reference.training_images()
        if found is None:
            self.skip(f"the source {self.source!r} has no images to look at")
        chosen = torch.arange(min(rows, len(found[0])))
        return found[0][chosen], index_condition(found[1], chosen)

    def batch(self, context: EvaluationContext, rows: Tensor, *, paired: bool) -> EvaluationBatch:
        images, condition = self.real_images(context)
        x = context.codec.encode(images)
        draws = draws_of(len(x))
        z = draws.noise("prior", tuple(x.shape[1:]))
        near = x + 0.1 * draws.noise("difference", tuple(x.shape[1:]))
        return EvaluationBatch(
            images=images[rows],
            condition=index_condition(condition, rows),
            index=rows,
            x=x[rows],
            z=z[rows],
            reference_x=near[rows] if paired else None,
            guidance=Guidance(torch.ones(len(rows), dtype=torch.float64)),
        )


class EvaluatorContract(EvaluationScene):
    """Checks of an evaluator, on handwritten digits unless ``source`` and ``codec`` say otherwise.

    Attributes:
        networks: whether it needs a teacher and a student in its context; paired evaluators always get both.
    """

    kind: ClassVar[str] = "evaluator"
    networks: ClassVar[bool] = False

    def test_prepares(self) -> None:
        self.ready()

    def test_scores_are_finite_numbers_by_name(self) -> None:
        scores = self.row(*self.ready(), _EVERY)
        self.expect(bool(scores), "at least one score", "none")
        for name, value in scores.items():
            good = isinstance(name, str) and isinstance(value, float) and math.isfinite(value)
            came = str(value) if isinstance(value, float) else describe(value)
            advice = "Return float(value) from compute(); leave out a score that has no meaning for the row."
            self.expect(good, f"the score {name!r} as a finite float", came, advice)

    def test_scores_do_not_depend_on_the_batches(self) -> None:
        whole, parts = self.row(*self.ready(), _EVERY), self.row(*self.ready(), *_EVERY.chunk(3))
        self.compare(whole, parts, "the same scores however samples are split into batches")

    def test_scores_are_repeatable(self) -> None:
        ready = self.ready()

        def scores() -> dict[str, float]:
            return {name: float(f"{value:.3g}") for name, value in self.row(*ready, _EVERY).items()}

        self.expect_repeatable(scores, "compute()")

    def test_reset_forgets_the_row_before(self) -> None:
        few = _EVERY[: _ROWS // 2]
        alone, ready = self.row(*self.ready(), few), self.ready()
        self.row(*ready, _EVERY, subject="teacher")
        self.compare(alone, self.row(*ready, few), "the scores of the second row's own samples after reset()")

    def test_images_are_left_alone(self) -> None:
        evaluator, context = self.ready()
        batch = self.batch(context, _EVERY, paired=evaluator.paired)
        evaluator.reset("student")
        with self.expect_untouched(batch.images):
            evaluator.update(batch)

    def ready(self) -> tuple[Evaluator, EvaluationContext]:
        """The evaluator, prepared, with a reference of the teacher's samples where it takes one."""
        evaluator: Evaluator = self.build()
        context = self.prepare(evaluator, networks=self.networks or evaluator.paired)
        if not evaluator.paired:
            evaluator.observe_reference(self.batch(context, _EVERY.flip(0), paired=False))
        return evaluator, context

    def row(
        self, evaluator: Evaluator, context: EvaluationContext, *parts: Tensor, subject: str = "student"
    ) -> dict[str, float]:
        evaluator.reset(subject)
        for rows in parts:
            evaluator.update(self.batch(context, rows, paired=evaluator.paired))
        return dict(evaluator.compute())

    def compare(self, expected: Mapping[str, float], found: Mapping[str, float], what: str) -> None:
        """Fail unless both agree to 0.1 %."""
        self.expect(expected.keys() == found.keys(), f"the scores {sorted(expected)}", str(sorted(found)))
        for name, value in expected.items():
            close = math.isclose(value, found[name], rel_tol=1e-3, abs_tol=1e-6)
            self.expect(close, f"{what}: {name} = {value:.6g}", f"{found[name]:.6g}")


class VerifierContract(EvaluationScene):
    """Checks of a verifier, on handwritten digits unless ``source`` and ``codec`` say otherwise.

    Attributes:
        prefers_real_images: False: it measures something in which noise may beat real images.
    """

    kind: ClassVar[str] = "verifier"
    prefers_real_images: ClassVar[bool] = True

    def test_scores_are_one_number_a_sample(self) -> None:
        verifier, images, condition = self.ready()
        for rows in (_FEW, 1):
            chosen = torch.arange(rows)
            found = verifier.score(images[chosen], index_condition(condition, chosen))
            self.expect_tensor(found, (rows,), "scores")
            self.expect(found.is_floating_point(), "float scores", describe(found))

    def test_scores_are_repeatable(self) -> None:
        verifier, images, condition = self.ready()
        with self.expect_untouched(images):
            self.expect_repeatable(lambda: verifier.score(images, condition), "score()")

    def test_rows_do_not_depend_on_each_other(self) -> None:
        verifier, images, condition = self.ready()
        rows = torch.tensor([7, 2])
        together = verifier.score(images, condition)[rows]
        alone = verifier.score(images[rows], index_condition(condition, rows))
        self.expect_close(alone, together, 1e-3, "scores that do not depend on the batch")

    def test_higher_is_better(self) -> None:
        if not self.prefers_real_images:
            self.skip("the contract says that noise may score higher (prefers_real_images = False)")
        verifier, images, condition = self.ready()
        noise = draws_of(len(images)).noise("noise", tuple(images.shape[1:]))
        grey = (127 + 60 * noise).clamp(0, 255).to(images.dtype)
        real, fake = float(verifier.score(images, condition).mean()), float(verifier.score(grey, condition).mean())
        came = f"{real:.4g} on average for real images and {fake:.4g} for noise"
        advice = "Higher is better: return minus a distance."
        self.expect(real > fake, "higher scores of real images than of noise", came, advice)

    def ready(self) -> tuple[Verifier, Tensor, Condition]:
        """The verifier, prepared, and a few images with their conditions."""
        verifier: Verifier = self.build()
        return verifier, *self.real_images(self.prepare(verifier, networks=True), _FEW)


class DistanceContract(EvaluationScene):
    """Checks of a distance, on handwritten digits unless ``source`` says otherwise."""

    kind: ClassVar[str] = "distance"

    def test_distances_are_0_of_equal_images_and_above_it_of_others(self) -> None:
        """(N,) floats, the same in a batch of one."""
        distance, images = self.ready()
        found = distance.between(images, images.roll(1, 0))
        self.expect_tensor(found, (_FEW,), "distances")
        self.expect(bool((found > 0).all()), "distances above 0 of different images", str(found.tolist()))
        alone = distance.between(images[:1], images[-1:])
        self.expect_close(alone, found[:1], 1e-3, "a distance that does not depend on the batch")
        same = float(distance.between(images, images).abs().max())
        self.expect(same < 1e-3 * float(found.mean()), "0 of equal images", f"{same:.2g}")

    def test_a_step_against_the_gradient_leads_closer(self) -> None:
        """Gradients flow to the images and point away from the others."""
        distance, images = self.ready()
        moved = images.roll(1, 0).requires_grad_()
        before = distance.between(moved, images).sum()
        (gradient,) = torch.autograd.grad(before, moved)
        step = 0.01 * moved.detach().norm() / gradient.norm().clamp_min(1e-12)
        after = distance.between(moved.detach() - step * gradient, images).sum()
        self.expect(bool(after < before), "a smaller distance after a small step", f"{after:.4g} from {before:.4g}")

    def ready(self) -> tuple[Distance, Tensor]:
        """The distance, and images in [-1, 1]."""
        distance: Distance = self.build()
        builder = self.builder()
        codec, reference = builder.build("codec", choose(self.codec)), builder.build("source", choose(self.source))
        context = EvaluationContext(builder.device, codec, reference=reference)
        return distance, self.real_images(context, _FEW)[0].float() / 127.5 - 1
