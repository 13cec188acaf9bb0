import pytest
import torch

from freeflow_core.types import Guidance, Progress, concatenate_conditions, index_condition


def test_guidance_interval_is_closed_and_one_outside():
    guidance = Guidance(torch.full((5,), 2.5), 0.2, 0.8)
    t = torch.tensor([0.1, 0.2, 0.5, 0.8, 0.9])
    assert guidance.at(t).tolist() == [1.0, 2.5, 2.5, 2.5, 1.0]
    assert guidance.rows(torch.tensor([0, 4])).weight.tolist() == [2.5, 2.5]


def test_conditions_index_and_join():
    labels = torch.arange(4)
    both = {"text": torch.arange(8.0).reshape(4, 2), "mask": torch.ones(4)}
    rows = torch.tensor([2, 0])
    assert index_condition(labels, rows).tolist() == [2, 0]
    assert index_condition(both, rows)["text"].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert index_condition(None, rows) is None
    assert concatenate_conditions(labels, labels).shape == (8,)
    assert concatenate_conditions(both, both)["text"].shape == (8, 2)
    assert concatenate_conditions(None, None) is None
    with pytest.raises(ValueError, match="cannot join"):
        concatenate_conditions(labels, None)


def test_progress_is_a_fraction_of_the_run():
    assert Progress(50, 1, 200).fraction == 0.25
    assert Progress(500, 1, 200).fraction == 1.0
