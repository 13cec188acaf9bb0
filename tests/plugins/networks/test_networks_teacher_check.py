"""`freeflow teacher check`: the right convention passes without a proposal, a wrong one fails and the right is named."""

import pytest
import torch
from freeflow_networks.calling import Conditions, ForeignNetwork
from freeflow_networks.config import OwnNetworkOptions
from freeflow_networks.teacher import OwnNetworkTeacher
from networks_support import ExactNetwork
from test_networks_conversions import COMBINATIONS, case, convention

from freeflow_core.interfaces import Teacher
from freeflow_core.math.conversions import Convention
from freeflow_core.teacher_check import check_built_teacher
from freeflow_core.testing.exact import GaussianTeacher

CPU = torch.device("cpu")
SCALED = [
    ("velocity", "linear", "data-at-1", "data-minus-noise"),
    ("v-prediction", "cosine", "data-at-0", "noise-minus-data"),
]


def teacher_of(network, read, shape=(2,)):
    foreign = ForeignNetwork(network, OwnNetworkOptions(sample_shape=(2,), arguments=("x", "t")), Conditions(), "test")
    return OwnNetworkTeacher(foreign, read, shape)


def examine(teacher, **options):
    return check_built_teacher(teacher, **{"num": 512, "num_steps": 16, "device": CPU, **options})


def status(report, name):
    (found,) = [check.status for check in report.checks if check.name == name]
    return found


@pytest.mark.parametrize("combination", COMBINATIONS[::7], ids="/".join)
def test_the_right_convention_passes_and_proposes_nothing(combination):
    read = convention(*combination)
    report = examine(teacher_of(ExactNetwork(*combination, read.scale), read))
    assert report.is_right, report.checks
    assert status(report, "calibration") == "ok"
    assert report.proposals == ()


def proposed_field_is_exact(combination, given):
    """The first proposal's field is the exact one: some conventions name the same field, or nearly so."""
    true = convention(*combination)
    report = examine(teacher_of(ExactNetwork(*combination, true.scale), given))
    assert not report.is_right
    assert status(report, "calibration") == "error"
    best = report.proposals[0].settings
    named = {"prediction": "velocity", "schedule": "linear", "time_direction": "data-at-0", "sign": None} | best
    sign = named["sign"] or ("noise-minus-data" if named["time_direction"] == "data-at-0" else "data-minus-noise")
    read = convention(named["prediction"], named["schedule"], named["time_direction"], sign, best.get("time_scale"))
    x_t, t, _ = case(true, 3)
    found = teacher_of(ExactNetwork(*combination, true.scale), read).velocity(x_t, t.clamp(0.1, 0.9), None)
    expected = GaussianTeacher(torch.tensor((0.5, -1.0)).double(), torch.tensor((0.5, 2.0)).double()).velocity(
        x_t, t.clamp(0.1, 0.9), None
    )
    assert (found - expected).norm() < 0.02 * expected.norm(), best


def test_a_wrong_convention_fails_and_the_right_one_is_proposed():
    proposed_field_is_exact(("noise", "ddpm", "data-at-0", "noise-minus-data"), Convention())


@pytest.mark.long
@pytest.mark.parametrize(
    "combination",
    [c for c in COMBINATIONS if c != ("velocity", "linear", "data-at-0", "noise-minus-data")],
    ids="/".join,
)
def test_every_convention_is_recognised(combination):
    proposed_field_is_exact(combination, Convention())


@pytest.mark.long
@pytest.mark.parametrize("combination", SCALED, ids="/".join)
def test_a_scale_of_thousand_is_recognised(combination):
    true = convention(*combination, 1000.0)
    report = examine(teacher_of(ExactNetwork(*combination, 1000.0), Convention()))
    assert report.proposals[0].settings.get("time_scale", true.schedule.default_scale) == 1000.0


def test_a_teacher_without_options_is_judged_without_proposals():
    class Reversed(Teacher):
        sample_shape = (2,)

        def velocity(self, x_t, t, condition):
            return -exact.velocity(x_t, t, condition)

    exact = GaussianTeacher(torch.tensor([0.5, -1.0]), torch.tensor([0.5, 2.0]))
    assert examine(exact).is_right
    report = examine(Reversed())
    assert not report.is_right
    assert report.proposals == ()
    assert status(report, "direction") == "error"


def test_what_a_network_can_get_wrong_is_found():
    good = ExactNetwork()
    nan = examine(teacher_of(lambda x, t: good(x, t) / 0, Convention()))
    assert [(c.name, c.status) for c in nan.checks][-1] == ("answers", "error")
    assert "NaN" in nan.checks[-1].detail
    random = examine(teacher_of(lambda x, t: good(x, t) + torch.rand(()), Convention()))
    assert "random numbers" in random.checks[1].detail
    mixed = examine(teacher_of(lambda x, t: good(x, t) + x.mean(0), Convention()))
    assert "rows are mixed" in mixed.checks[1].detail
    detached = examine(teacher_of(lambda x, t: torch.from_numpy(good(x, t).numpy()), Convention()))
    assert (status(detached, "derivative"), detached.is_right) == ("warning", True)
    runaway = examine(teacher_of(lambda x, t: 1e4 * x - 1e4 * t[:, None], Convention()), num=64, search=False)
    assert status(runaway, "samples") == "error"


@pytest.mark.parametrize(("prediction", "scale"), [("velocity", 0.5), ("noise", 3.0)])
def test_a_wrong_scale_of_the_answer_is_proposed(prediction, scale):
    exact = ExactNetwork(prediction)
    read = convention(prediction, "linear", "data-at-0", "noise-minus-data")
    report = examine(teacher_of(lambda x, t: exact(x, t) / scale, read))
    assert not report.is_right
    assert report.proposals[0].settings == {"output_scale": scale}


def test_predicted_noise_is_proposed_where_its_residual_hardly_shows_it():
    for std in (0.5, 1.0):
        exact = ExactNetwork("noise", std=(std, std))
        report = examine(teacher_of(exact, Convention()))
        assert not report.is_right
        assert {"prediction": "noise"} in [proposal.settings for proposal in report.proposals]
        assert examine(teacher_of(exact, convention("noise", "linear", "data-at-0", "noise-minus-data"))).is_right


@pytest.mark.parametrize("sign", [1, -1])
def test_a_state_in_the_answer_is_told_and_nothing_else_proposed(sign):
    exact = ExactNetwork()
    report = examine(teacher_of(lambda x, t: exact(x, t) + sign * x, Convention()))
    assert not report.is_right
    assert report.proposals == ()
    (told,) = [check.detail for check in report.checks if check.name == "calibration"]
    assert f"its answer {'-' if sign > 0 else '+'} x" in told


def test_a_check_asks_a_network_of_images_a_few_thousand_rows():
    """Of a network of a million weights, at about two milliseconds a row, that is fourteen seconds."""
    asked = 0

    def counted(x, t):
        nonlocal asked
        asked += len(x)
        return -x.sin()

    wrong = examine(teacher_of(counted, Convention(), (1, 28, 28)), num=None)
    assert not wrong.is_right
    assert asked < 7_000
    asked, mean = 0, torch.zeros(1, 28, 28)
    exact = GaussianTeacher(mean, mean + 0.5)

    def right(x, t):
        nonlocal asked
        asked += len(x)
        return exact.velocity(x, t, None)

    assert examine(teacher_of(right, Convention(), (1, 28, 28)), num=None).is_right
    assert asked < 1_000
