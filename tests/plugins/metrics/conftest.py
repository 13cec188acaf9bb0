"""What the tests of the evaluators share."""

import pytest
import torch
from freeflow_metrics.train_features import make_source

from freeflow_core.interfaces import BuildContext, Codec, EvaluationBatch, EvaluationContext, Source


class PixelCodec(Codec):
    """uint8 <-> [-1, 1]."""

    def encode(self, images):
        return images.float() / 127.5 - 1

    def decode(self, x):
        return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class HeldOutSource(Source):
    """Held-out images and nothing else."""

    def __init__(self, images):
        self._images = images

    def batches(self, start, batch_size, rank, world_size):
        return iter(())

    def held_out(self):
        return None if self._images is None else (self._images, None)


@pytest.fixture(scope="session")
def digits():
    """The digits with their default split."""
    return make_source("digits", {})


@pytest.fixture
def evaluation_context():
    """Makes a context: ``evaluation_context(reference_images, teacher=..., student=...)``."""

    def make(reference=None, **networks):
        source = None if reference is None else HeldOutSource(reference)
        return EvaluationContext(torch.device("cpu"), PixelCodec(), reference=source, **networks)

    return make


@pytest.fixture
def build_context():
    def component(kind, name, options):
        raise AssertionError("evaluators build no other components")

    return BuildContext(torch.device("cpu"), 0, component)


@pytest.fixture
def score_row():
    """Feeds a row to an evaluator in batches: ``score_row(evaluator, subject, images, labels, batch_size)``."""

    def score(evaluator, subject, images, labels=None, batch_size=100):
        evaluator.reset(subject)
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            evaluator.update(EvaluationBatch(images[rows], None if labels is None else labels[rows]))
        return evaluator.compute()

    return score
