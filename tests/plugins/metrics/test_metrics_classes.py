"""Class accuracy and the spread within classes."""

import pytest
import torch
from freeflow_metrics.classes import ClassAccuracyEvaluator, ClassSpread, SpreadEvaluator
from freeflow_metrics.config import ClassAccuracyConfig, SpreadConfig

from freeflow_core.interfaces import EvaluationBatch


@pytest.fixture
def accuracy(evaluation_context):
    evaluator = ClassAccuracyEvaluator(ClassAccuracyConfig())
    evaluator.prepare(evaluation_context())
    return evaluator


@pytest.fixture
def spread(evaluation_context):
    evaluator = SpreadEvaluator(SpreadConfig())
    evaluator.prepare(evaluation_context())
    return evaluator


def test_accuracy_of_real_digits_and_of_wrong_labels(accuracy, digits, score_row):
    images, labels = digits.held_out()
    right = score_row(accuracy, "data", images, labels)["accuracy"]
    assert right >= 0.97
    assert score_row(accuracy, "data", images, (labels + 1) % 10)["accuracy"] <= 1 - right


def test_accuracy_leaves_out_what_has_no_label(accuracy, digits, score_row):
    images, labels = digits.held_out()
    assert score_row(accuracy, "student", images) == {}
    assert score_row(accuracy, "student", images, torch.full_like(labels, 10)) == {}
    half_null = torch.where(torch.arange(len(labels)) % 2 == 0, labels, 10)
    assert score_row(accuracy, "student", images, half_null)["accuracy"] >= 0.97


def test_spread_is_the_standard_deviation_within_classes(spread, digits, score_row):
    images, labels = digits.training_images()
    x = images.double() / 127.5 - 1
    expected = torch.stack([x[labels == c].std(0).mean() for c in range(10)]).mean()
    for size in (1200, 7):
        found = score_row(spread, "data", images, labels, batch_size=size)
        assert set(found) == {"spread"}
        assert found["spread"] == pytest.approx(float(expected), rel=1e-12)


def test_one_collapsed_class_shows(spread, digits, score_row):
    images, labels = digits.training_images()
    spread.observe_reference(EvaluationBatch(images, labels))
    same = score_row(spread, "student", images, labels)
    assert same["spread_ratio"] == pytest.approx(1)
    assert same["spread_ratio_min"] == pytest.approx(1)
    collapsed = images.clone()
    collapsed[labels == 4] = images[labels == 4][0]
    found = score_row(spread, "student", collapsed, labels)
    assert found["spread_ratio_min"] == 0
    assert 0.85 < found["spread_ratio"] < 0.95
    assert found["spread"] < same["spread"]
    assert set(score_row(spread, "teacher", images, labels)) == {"spread"}


def test_a_class_of_one_sample_is_left_out(spread, digits, score_row):
    images = digits.training_images()[0][:9]
    alone = score_row(spread, "data", images[:8], torch.zeros(8, dtype=torch.int64))
    assert score_row(spread, "data", images, torch.tensor([0] * 8 + [1])) == alone != {}


def test_large_images_are_averaged_first():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 16, 16), generator=generator, dtype=torch.uint8)
    spread = ClassSpread(max_side=8)
    spread.update(images, None)
    small = images.double().unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean((3, 5)) / 127.5
    assert spread.per_class()[0] == pytest.approx(float(small.std(0).mean()), rel=1e-9)
