"""Training from a wrong start reaches the exact map."""

import torch
from freeflow_predictor_corrector.config import FreeFlowConfig
from freeflow_predictor_corrector.freeflow import FreeFlow
from predictor_corrector_helpers import SmallStudent, losses, models, progress
from torch import Tensor

from freeflow_core.math.random import PhiloxDraws
from freeflow_core.testing.exact import GaussianTeacher

ROWS = 64


def _samples(student: SmallStudent, teacher: GaussianTeacher) -> tuple[Tensor, Tensor]:
    z = PhiloxDraws(2, torch.arange(4000)).noise("z", (2,))
    one = torch.ones(4000)
    with torch.no_grad():
        return student.flow_map(z, one, 0 * one, None, one), teacher.exact_flow_map(z, one, 0 * one)


def test_freeflow_reaches_the_exact_map_from_a_wrong_start():
    teacher = GaussianTeacher(torch.tensor([0.5, -0.5]), torch.tensor([0.4, 1.5]))
    student = SmallStudent(seed=5, dtype=torch.float32)
    x, exact = _samples(student, teacher)
    assert (x - exact).square().mean().sqrt() > 0.5

    objective = FreeFlow(FreeFlowConfig(weight_power=0.0, derivative="one-sided"))
    fake = objective.roles(student, teacher)["fake_velocity"].network
    networks, steps = models(student, teacher, fake), 500
    optimizers = [torch.optim.Adam(network.parameters(), 5e-3) for network in (student, fake)]
    for step in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        draws = PhiloxDraws(1, torch.arange(ROWS) + step * ROWS)
        step_losses = losses(objective, networks, draws, at=progress(step, step * ROWS))
        torch.stack([loss.per_sample.mean() for loss in step_losses.values()]).sum().backward()
        for optimizer in optimizers:
            optimizer.step()

    x, exact = _samples(student, teacher)
    torch.testing.assert_close(x.std(0), exact.std(0), rtol=0.1, atol=0.02)
    torch.testing.assert_close(x.mean(0), exact.mean(0), rtol=0, atol=0.05)
    assert (x - exact).square().mean().sqrt() < 0.1
