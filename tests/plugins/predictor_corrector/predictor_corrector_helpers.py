"""Small exact networks, fixed draws and spies for the tests of the predictor-corrector objectives."""

from typing import Any

import exact_maps
import torch
from exact_maps import PlainStudent
from objective_helpers import NUM_CLASSES, LocalContext, philox
from torch import Tensor, nn

from freeflow_core.interfaces import Model, Models, Teacher
from freeflow_core.types import Batch, Condition, Draws, Progress

__all__ = ["NUM_CLASSES", "LocalContext", "philox"]

NO_DATA = Batch(None, None)


def progress(step: int = 1, images: int = 0) -> Progress:
    return Progress(images=images, step=step, total_images=1000)


def models(student: nn.Module, teacher: Teacher, fake: nn.Module | None = None) -> Models:
    roles = {"student": Model(student, student)}
    if fake is not None:
        roles["fake_velocity"] = Model(fake, fake)
    return Models(roles, teacher)


def losses(objective: Any, networks: Models, draws: Draws, *, at: Progress | None = None) -> dict[str, Any]:
    return dict(objective.losses(networks, NO_DATA, draws, at or progress(), LocalContext()))


class ClassTeacher(exact_maps.ClassTeacher):
    """In the plane. Says what it was asked."""

    def __init__(self) -> None:
        super().__init__(dims=2)

    @property
    def rows_of_calls(self) -> list[int]:
        return self.calls

    @property
    def weights(self) -> list[Tensor]:
        return [weight for _, weight in self.asked]

    @property
    def times(self) -> list[Tensor]:
        return [t for t, _ in self.asked]


class SmallStudent(PlainStudent):
    """A smooth perceptron of (x_t, t, s, guidance), and of the label when there is one. Records every s it sees."""

    def __init__(self, dims: int = 2, width: int = 32, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.sample_shape = (dims,)
        self.net = nn.Sequential(
            nn.Linear(dims + 3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, dims)
        ).to(dtype)
        self.label = nn.Embedding(NUM_CLASSES, dims + 3).to(dtype)
        self.seen: list[Tensor] = []

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, guidance: Tensor | None) -> Tensor:
        assert guidance is not None
        assert t.dtype == s.dtype == guidance.dtype == x_t.dtype
        self.seen.append(s.detach())
        h = torch.cat([x_t, torch.stack([t, s, guidance], 1)], 1)
        return self.net(h if condition is None else h + self.label(condition))


def gradients(loss: Tensor, network: nn.Module) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
