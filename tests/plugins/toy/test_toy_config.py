"""Options of the toy components, and the components they build."""

import math

import pytest
import torch
from freeflow_toy.config import GaussianMixtureConfig, MLPStudentConfig
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher
from freeflow_toy.mlp import MLPStudent
from pydantic import ValidationError

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import BuildContext


def context(teacher=None, seed=0):
    return BuildContext(device=torch.device("cpu"), seed=seed, component=lambda *_: None, teacher=teacher)


def teacher(**options):
    return GaussianMixtureTeacher.from_config(GaussianMixtureConfig(**options), context())


def test_layouts():
    ring = teacher()
    grid = teacher(layout="grid", num_modes=9, radius=3, sample_shape=(1, 2, 2), num_classes=3)
    assert {tuple(row) for row in grid.means[:, :2].tolist()} == {(a, b) for a in (-3, 0, 3) for b in (-3, 0, 3)}
    assert (grid.sample_shape, grid.num_classes, bool(grid.means[:, 2:].any())) == ((1, 2, 2), 3, False)
    assert teacher(layout="single", sample_shape=(1,), radius=1).means.tolist() == [[1.0]]
    assert (ring.sample_shape, ring.num_classes, ring.means.shape) == ((2,), None, (8, 2))
    torch.testing.assert_close(ring.means.norm(dim=1), torch.full((8,), 2.0).double())
    gaps = (ring.means - ring.means.roll(1, 0)).norm(dim=1)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 4 * math.sin(math.pi / 8)))
    torch.testing.assert_close(ring.variances, torch.full((8, 2), 0.01).double(), rtol=1e-6, atol=0)


def test_lower_triangles_equal_full_matrices():
    common = {"layout": "custom", "means": [[0, 0], [1, 1]], "labels": [0, 1], "weights": [3, 1]}
    full = teacher(**common, covariances=[[[1, 0.3], [0.3, 2]], [[0.5, 0], [0, 0.5]]])
    triangles = teacher(**common, covariances=[[[1], [0.3, 2]], [[0.5], [0, 0.5]]])
    x, t = torch.randn(5, 2), torch.rand(5)
    label = torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(full.velocity(x, t, label), triangles.velocity(x, t, label))
    assert full.class_probabilities.tolist() == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "custom"}, "got none"),
        ({"layout": "custom", "means": [[0, 0]], "stds": [1], "covariances": [[[1], [0, 1]]]}, "exactly one"),
        ({"layout": "custom", "means": [[0, 0, 0]], "stds": [1]}, r"means\[0\]"),
        ({"layout": "custom", "means": [[0, 0]], "stds": [-1]}, "greater than 0"),
        ({"layout": "custom", "means": [[0, 0]], "covariances": [[[1, 0.5], [0, 1]]]}, "symmetric"),
        ({"layout": "custom", "means": [[0, 0]], "covariances": [[[1, 0], [0]]]}, "lower triangle"),
        ({"means": [[0, 0]]}, "layout: custom"),
        ({"weights": [1, 2]}, "weights has 2"),
        ({"num_modes": 2, "labels": [0, 1], "num_classes": 2}, "one of them"),
        ({"num_classes": 9}, "num_classes=9"),
        ({"layout": "grid", "num_modes": 8}, "square number"),
        ({"sample_shape": [1]}, "at least 2 dimensions"),
    ],
)
def test_bad_options_say_what_is_wrong(options, message):
    with pytest.raises(ValidationError, match=message):
        GaussianMixtureConfig(**options)


def test_student_takes_its_shape_from_the_teacher():
    student = MLPStudent.from_config(MLPStudentConfig(), context(teacher(sample_shape=(2, 3), num_classes=4)))
    assert (student.sample_shape, student.num_classes) == ((2, 3), 4)
    with pytest.raises(ConfigError, match="sample_shape"):
        MLPStudent.from_config(MLPStudentConfig(), context())
    explicit = MLPStudent.from_config(MLPStudentConfig(sample_shape=(5,), num_classes=2), context())
    assert (explicit.sample_shape, explicit.num_classes) == ((5,), 2)


def test_weights_depend_on_the_seed_alone():
    def weights(seed):
        torch.rand(seed + 1)
        before = torch.get_rng_state()
        built = MLPStudent.from_config(MLPStudentConfig(sample_shape=(2,)), context(seed=seed))
        assert torch.equal(before, torch.get_rng_state())
        return torch.cat([p.flatten() for p in built.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
