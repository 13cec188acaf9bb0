"""The correction objective: its zero, its direction, its exact gradient, and lambda."""

import pytest
import torch
from exact_maps import ClassTeacher, small_student
from freeflow_predictor_corrector.config import CorrectionConfig, FreeFlowConfig
from freeflow_predictor_corrector.correction import corrector_weights
from freeflow_predictor_corrector.freeflow import FreeFlow, FreeFlowCorrection
from objective_helpers import NO_DATA, GivenDraws, models, parameter_gradients, philox, progress, step

from freeflow_core.interfaces import Context
from freeflow_core.testing.exact import GaussianStudent, GaussianTeacher

ONE = torch.ones(1, dtype=torch.float64)


def _pair(mean, std):
    """A student whose samples are N(mean, std^2), and the exact velocity of those samples noised."""
    return GaussianStudent(mean * ONE, std * ONE), GaussianStudent(mean * ONE, std * ONE)


def _gradient(mean, std, **options):
    student, fake = _pair(mean, std)
    objective = FreeFlowCorrection(CorrectionConfig(**options))
    loss = step(objective, models(student, GaussianTeacher(0 * ONE, ONE), fake_velocity=fake), philox(4000))["student"]
    return dict(zip(("mean", "std"), parameter_gradients(loss.per_sample, student), strict=True))


def test_no_gradient_where_student_and_teacher_agree():
    gradient = _gradient(0.0, 1.0)
    assert gradient["std"].abs() < 1e-14
    assert gradient["mean"].abs() < 1e-14


def test_too_wide_narrows_too_narrow_widens_shifted_returns():
    # Gradient descent moves against the gradient.
    assert _gradient(0.0, 1.3)["std"] > 0.01
    assert _gradient(0.0, 0.7)["std"] < -0.01
    assert _gradient(0.4, 1.0)["mean"] > 0.01
    assert _gradient(-0.4, 1.0)["mean"] < -0.01


@pytest.mark.parametrize("r", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("a", [0.6, 1.2])
def test_gradient_is_the_exact_kl_gradient(r, a):
    """Two-point quadrature is exact, for the loss is quadratic in (z, n); d KL_r / da (1-r)^-2 r in closed form."""
    teacher_variance = 0.8
    z = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    n = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    given = {"prior": z[:, None], "correction-noise": n[:, None], "noise-level": torch.full_like(z, 1 - r)}
    draws = GivenDraws(4, given)
    student, fake = _pair(0.0, a)
    teacher = GaussianTeacher(0 * ONE, ONE * teacher_variance**0.5)
    objective = FreeFlowCorrection(CorrectionConfig(r_distribution="uniform"))
    loss = step(objective, models(student, teacher, fake_velocity=fake), draws)["student"]
    found = parameter_gradients(loss.per_sample, student)[1:]

    exact_a = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    ours, theirs = (1 - r) ** 2 * exact_a**2 + r**2, (1 - r) ** 2 * teacher_variance + r**2
    kl = 0.5 * (ours / theirs - 1 - torch.log(ours / theirs))
    (slope,) = torch.autograd.grad(kl, exact_a)
    torch.testing.assert_close(found[0], slope * r / (1 - r) ** 2, rtol=1e-10, atol=1e-12)


def test_fake_velocity_loss_is_flow_matching_on_the_samples():
    teacher, (student, fake) = GaussianTeacher(torch.zeros(2).double(), torch.ones(2).double()), _two_small()
    draws = philox(32)
    loss = step(
        FreeFlowCorrection(CorrectionConfig(guidance_min=2, guidance_max=3)),
        models(student, teacher, fake_velocity=fake),
        draws,
    )["fake_velocity"]
    one, g = torch.ones(32, dtype=torch.float64), 3 - draws.uniform("guidance")
    x = draws.noise("prior", (2,)) - student(draws.noise("prior", (2,)), one, 0 * one, None, g)
    n = draws.noise("correction-noise", (2,))
    r = torch.sigmoid(0.8 + torch.special.ndtri(draws.uniform("noise-level")))
    v_n = fake((1 - r[:, None]) * x + r[:, None] * n, r, r, None, g)
    torch.testing.assert_close(loss.per_sample, (v_n - (n - x)).square().mean(1))


def test_correction_weight_power():
    teacher, (student, fake) = GaussianTeacher(torch.zeros(2).double(), torch.ones(2).double()), _two_small()

    def run(power):
        config = CorrectionConfig(correction_weight_power=power, weight_epsilon=0.02)
        return step(FreeFlowCorrection(config), models(student, teacher, fake_velocity=fake), philox(6))[
            "student"
        ].per_sample

    ratio = run(0.5) / run(0)
    assert ratio.std() > 0.01
    torch.testing.assert_close(run(1.0) / run(0), ratio**2)


def _two_small():
    return small_student(1), small_student(2)


def test_guidance_of_the_corrector_follows_its_profile():
    config = CorrectionConfig(correction_guidance_profile=((0.2, 0.6), (0.6, 0.2)))
    r = torch.tensor([0.0, 0.2, 0.4, 0.6, 1.0], dtype=torch.float64)
    weight = corrector_weights(torch.full((5,), 3.0, dtype=torch.float64), r, config)
    torch.testing.assert_close(weight, 1 + 2 * torch.tensor([0.6, 0.6, 0.4, 0.2, 0.2], dtype=torch.float64))


@pytest.mark.parametrize("mode", ["raw", "weighted", "fixed"])
def test_lambda_by_formula(mode):
    teacher, (student, fake) = ClassTeacher(dims=2), _two_small()
    config = FreeFlowConfig(
        adaptive=mode != "fixed",
        balance="weighted" if mode == "weighted" else "raw",
        balance_strength=0.7,
        balance_epsilon=0.01,
        weight_power=0.5,
        correction_weight_power=1.0,
        weight_epsilon=0.05,
    )
    seen = []

    class Recording(Context):
        def mean(self, values):
            seen.append(values)
            return values.mean()

    objective = FreeFlow(config)
    networks = models(student, teacher, fake_velocity=fake)
    terms = objective.losses(networks, NO_DATA, philox(32), progress(), Recording())["student"].terms
    assert objective.uses_batch_means == (mode != "fixed")
    if mode == "fixed":
        assert seen == []
        assert terms["balance"] == pytest.approx(0.7)
        return
    assert [len(v) for v in seen] == [24, 8]
    expected = 0.7 * seen[0].mean() / (seen[1].mean() + 0.01)
    torch.testing.assert_close(terms["balance"], expected)
    if mode == "raw":
        torch.testing.assert_close(seen[0].mean(), terms["prediction_residual"])
        torch.testing.assert_close(seen[1].mean(), terms["correction_residual"])
    else:
        raw = FreeFlow(config.model_copy(update={"balance": "raw"}))
        recorded, seen = seen, []
        raw.losses(networks, NO_DATA, philox(32), progress(), Recording())
        torch.testing.assert_close(recorded[0], seen[0] * (seen[0].square() + 0.05) ** -0.5)
        torch.testing.assert_close(recorded[1], seen[1] / (seen[1].square() + 0.05))


def test_correction_rises_with_its_warmup():
    teacher, (student, fake) = ClassTeacher(dims=2), _two_small()
    objective = FreeFlow(FreeFlowConfig(correction_warmup_images=100))
    networks = models(student, teacher, fake_velocity=fake)
    at = {n: step(objective, networks, philox(8), at=progress(images=n)) for n in (0, 25, 100, 500)}
    full = at[100]["student"].terms["balance"]
    assert at[0]["student"].terms["balance"] == 0
    assert torch.all(at[0]["student"].per_sample[6:] == 0)
    assert at[0]["fake_velocity"].per_sample.min() > 0
    torch.testing.assert_close(at[25]["student"].terms["balance"], 0.25 * full)
    torch.testing.assert_close(at[500]["student"].terms["balance"], full)


@pytest.mark.parametrize("fake_std", [0.6, 0.75, 0.9, 1.5])
@pytest.mark.parametrize("r", [0.2, 0.7])
def test_the_signal_is_the_share_of_the_residual_that_is_true(r, fake_std):
    """Linear fields v = k x_r: E<Delta_N, true difference> / E Delta_N^2 is (k_S - k) / (k_F - k), at every level."""
    std, teacher_std = 0.6, 1.0

    def slope(deviation):
        return (r - (1 - r) * deviation**2) / ((1 - r) ** 2 * deviation**2 + r**2)

    z = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    n = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    given = {"prior": z[:, None], "correction-noise": n[:, None], "noise-level": torch.full_like(z, 1 - r)}
    student, _ = _pair(0.0, std)
    networks = models(student, GaussianTeacher(0 * ONE, teacher_std * ONE), fake_velocity=_pair(0.0, fake_std)[0])
    objective = FreeFlowCorrection(CorrectionConfig(r_distribution="uniform"))
    found = step(objective, networks, GivenDraws(4, given))["student"].terms["correction_signal"]
    expected = (slope(std) - slope(teacher_std)) / (slope(fake_std) - slope(teacher_std))
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("fake_std", "share"), [(0.6, 1.0), (1.4, 0.0)])
def test_a_correction_without_signal_fades_and_a_true_one_stays(fake_std, share):
    """A fake velocity that knows the student's samples, and one that points away from the truth."""
    networks = models(_pair(0.0, 0.6)[0], GaussianTeacher(0 * ONE, ONE), fake_velocity=_pair(0.0, fake_std)[0])

    def scale(mode):
        found = step(FreeFlow(FreeFlowConfig(balance=mode)), networks, philox(4000))
        return float(found["student"].terms["balance"])

    assert scale("signal") == pytest.approx(share * scale("weighted"), rel=0.2, abs=0.02 * scale("weighted"))


def test_the_signal_is_averaged_over_steps_and_survives_a_checkpoint():
    networks = models(_pair(0.0, 0.6)[0], GaussianTeacher(0 * ONE, ONE), fake_velocity=_pair(0.0, 0.3)[0])
    config = FreeFlowConfig(balance="signal", signal_halflife_images=100)

    def scale(objective, number):
        at = progress(step=number, images=64 * number)
        return step(objective, networks, philox(64, start=64 * number), at=at)["student"].terms["balance"]

    whole, first, second = FreeFlow(config), FreeFlow(config), FreeFlow(config)
    expected = [scale(whole, number) for number in range(4)]
    assert torch.equal(scale(whole, 3), expected[3])  # another micro-batch of the same step changes nothing
    for number in range(2):
        scale(first, number)
    second.load_state_dict(first.state_dict())
    assert [scale(second, number) for number in (2, 3)] == expected[2:]
    assert not torch.equal(scale(FreeFlow(config), 3), expected[3])
