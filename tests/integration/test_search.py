"""Best-of-N: what is chosen, what it costs, and what it is compared with."""

import json

import numpy as np
import pytest
import torch

from freeflow_core import api
from freeflow_core.config import ComponentChoice, load_run_config
from freeflow_core.engine.build import Builder
from freeflow_core.errors import ConfigError
from freeflow_core.evaluation.sampling import Generator
from freeflow_core.interfaces import Verifier
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.search import BestOfN


class Brightest(Verifier):
    """The mean of the image."""

    def prepare(self, context):
        pass

    def score(self, images, condition):
        return images.double().flatten(1).mean(1)


@pytest.fixture(scope="module")
def parts():
    registry = Registry(Manager.load())
    builder = Builder(registry, torch.device("cpu"), 0)
    teacher = builder.teacher(ComponentChoice(name="digits"))
    student = builder.build("student", ComponentChoice(name="transformer"), teacher=teacher)
    student.load_teacher(teacher)
    codec = builder.build("codec", ComponentChoice(name="pixels"))
    return registry, builder, teacher, student.eval(), codec


def generator(parts, sampler, steps, weight=1.0):
    _, builder, teacher, student, codec = parts
    built = builder.build("sampler", ComponentChoice(name=sampler))
    return Generator(built, steps, codec, teacher=teacher, student=student, seed=3, guidance_weight=weight)


def test_the_noise_whose_student_sample_the_verifier_likes_best_goes_to_the_teacher(parts):
    screen, finish = generator(parts, "one-step", 1), generator(parts, "euler", 2)
    search = BestOfN(screen, finish, Brightest(), 4)
    index = torch.tensor([0, 5, 7])
    chosen, scores, _ = search.screen(index, 5)
    for row, i in enumerate(index.tolist()):
        noises = torch.arange(4 * i, 4 * i + 4)
        images = screen.batch(torch.full((4,), i), noises).images
        expected = images.double().flatten(1).mean(1)
        torch.testing.assert_close(scores[row], expected)
        assert chosen[row] == noises[expected.argmax()]
    batch = search.batch(index, 5)
    assert torch.equal(batch.images, finish.batch(index, chosen).images)
    assert batch.condition.tolist() == [0, 5, 7]


def test_with_a_temperature_candidates_are_drawn_by_their_scores(parts):
    class Known(Brightest):
        """Scores log 1, log 2, log 3, log 4 of the four candidates of every sample."""

        def score(self, images, condition):
            return torch.arange(1, 5).double().log().repeat(len(images) // 4)

    screen, finish = generator(parts, "one-step", 1), generator(parts, "euler", 1)
    index = torch.arange(1000)
    chosen, _, _ = BestOfN(screen, finish, Known(), 4, temperature=1.0).screen(index, 1000)
    shares = torch.bincount(chosen - 4 * index, minlength=4) / 1000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.05, rtol=0)
    again, _, _ = BestOfN(screen, finish, Known(), 4, temperature=1.0).screen(index[500:520], 20)
    assert torch.equal(again, chosen[500:520])
    cold, _, _ = BestOfN(screen, finish, Known(), 4, temperature=1e-3).screen(index[:20], 20)
    assert torch.equal(cold, 4 * index[:20] + 3)


def test_samples_do_not_depend_on_the_batch(parts):
    search = BestOfN(generator(parts, "one-step", 1), generator(parts, "euler", 2), Brightest(), 3)
    whole = next(iter(search.batches(0, 6, 6)))
    pieces = torch.cat([batch.z for batch in search.batches(0, 6, 2)])
    assert torch.equal(whole.z, pieces)


def test_every_evaluation_is_counted_and_one_candidate_is_plain_sampling(parts):
    finish = generator(parts, "heun", 3, weight=2.0)
    four = BestOfN(generator(parts, "one-step", 1), finish, Brightest(), 4).batch(torch.arange(2), 8)
    assert four.num_evaluations == 4 + 3 * 2 * 2
    one = BestOfN(generator(parts, "one-step", 1), finish, Brightest(), 1).batch(torch.arange(2), 8)
    assert one.num_evaluations == 3 * 2 * 2
    assert torch.equal(one.images, finish.batch(torch.arange(2)).images)


def test_what_is_written_can_be_read_and_compared(parts, tmp_path):
    registry = parts[0]
    settings = ("evaluation.num_samples=60", "evaluation.batch_size=60", "evaluation.evaluators=[kernel]")
    config = load_run_config(registry, "distill", preset="digits", assignments=(*settings, "runtime.device=cpu"))
    student = tmp_path / "student.safetensors"
    from freeflow_core.evaluation.student_file import save_student

    save_student(student, config, parts[3], 0)
    options = {"candidates": 2, "steps": 2, "sampler": "euler", "num": 12, "compare_seeds": 2}
    result = api.search(config, student=student, output=tmp_path / "out", **options)
    arrays = np.load(result.files["samples"])
    assert arrays["arr_0"].shape == (12, 8, 8, 1)
    assert arrays["arr_1"].tolist() == [i % 10 for i in range(12)]
    assert set(result.rows) == {"search", "same steps", "same evaluations"}
    assert result.rows["search"].scores["evaluations"] == (4.0, 0.0)
    assert result.rows["same evaluations"].scores["evaluations"][0] == 4.0
    saved = json.loads(result.files["search"].read_text())
    first = saved["first_samples"][1]
    assert first["noise"] == 2 + int(np.argmax(first["scores"]))
    assert "| search | 2 | 4 |" in result.files["table"].read_text()


def test_a_student_of_other_states_is_refused(parts):
    screen, finish = generator(parts, "one-step", 1), generator(parts, "euler", 2)
    finish.networks[0].sample_shape = (1, 4, 4)
    try:
        with pytest.raises(ConfigError, match=r"\(1, 8, 8\), the teacher \(1, 4, 4\)"):
            BestOfN(screen, finish, Brightest(), 2)
    finally:
        finish.networks[0].sample_shape = (1, 8, 8)
