"""What a verifier promises."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from freeflow_core.errors import FreeflowError
from freeflow_core.interfaces import EvaluationContext, Verifier
from freeflow_core.testing.contracts.evaluation_scene import EvaluationScene
from freeflow_core.testing.contracts.tensors import draws_of, relative_difference, watched_random_state
from freeflow_core.types import describe, index_condition

_ROWS = 12


class VerifierContract(EvaluationScene):
    """Checks of a verifier, on handwritten digits unless ``source`` and ``codec`` say otherwise.

    Attributes:
        prefers_real_images: False: it measures something in which noise may beat real images.
    """

    kind: ClassVar[str] = "verifier"
    prefers_real_images: ClassVar[bool] = True

    def test_scores_are_one_number_a_sample(self) -> None:
        """(N,) finite floats for N = 12 and N = 1."""
        verifier, context = self.ready()
        images, condition = self.real_images(context, _ROWS)
        for rows in (_ROWS, 1):
            chosen = torch.arange(rows)
            found = verifier.score(images[chosen], index_condition(condition, chosen))
            good = isinstance(found, Tensor) and found.shape == (rows,) and found.is_floating_point()
            self.expect(good and bool(torch.isfinite(found).all()), f"finite float scores ({rows},)", describe(found))

    def test_scores_are_repeatable(self) -> None:
        """Same images, same scores; torch's global generator is not used, and the images stay as they are."""
        verifier, context = self.ready()
        images, condition = self.real_images(context, _ROWS)
        kept = images.clone()
        with watched_random_state() as used:
            first, second = verifier.score(images, condition), verifier.score(images, condition)
        self.expect(
            torch.equal(first, second) and not used[0],
            "the same scores for the same images",
            "global random numbers drawn" if used[0] else "other scores",
        )
        self.expect(torch.equal(images, kept), "the images as they were", "changed ones")

    def test_rows_do_not_depend_on_each_other(self) -> None:
        """A sample's score is its own: candidates are scored in batches of any size."""
        verifier, context = self.ready()
        images, condition = self.real_images(context, _ROWS)
        rows = torch.tensor([7, 2])
        together = verifier.score(images, condition)[rows]
        error = relative_difference(verifier.score(images[rows], index_condition(condition, rows)), together)
        self.expect(error < 1e-3, "scores that do not depend on the batch", f"a relative difference of {error:.2g}")

    def test_higher_is_better(self) -> None:
        """Real images score higher, on average, than uniform noise asked to be the same classes."""
        if not self.prefers_real_images:
            self.skip("the contract says that noise may score higher (prefers_real_images = False)")
        verifier, context = self.ready()
        images, condition = self.real_images(context, _ROWS)
        noise = draws_of(len(images)).noise("noise", tuple(images.shape[1:]))
        grey = (127 + 60 * noise).clamp(0, 255).to(images.dtype)
        real, fake = float(verifier.score(images, condition).mean()), float(verifier.score(grey, condition).mean())
        self.expect(
            real > fake,
            "higher scores of real images than of noise",
            f"{real:.4g} on average for real images and {fake:.4g} for noise",
            "Higher is better: return minus a distance.",
        )

    def ready(self) -> tuple[Verifier, EvaluationContext]:
        """The verifier, prepared."""
        verifier: Verifier = self.build()
        context = self.context()
        try:
            verifier.prepare(context)
        except FreeflowError as error:
            self.fail("prepare() to accept held-out digits and a codec", str(error))
        return verifier, context
