"""Exact maps, given draws and spies for the tests of objectives. One process, one micro-batch, float64."""

from typing import Any

import torch
from plugin_helpers import plugin
from torch import Tensor, nn

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import BuildContext, Context, Model, Models, Objective, Teacher
from freeflow_core.math.derivative import Stencil
from freeflow_core.math.flow import mean_square
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.objective_kit import passes
from freeflow_core.plugin import Component, Manager
from freeflow_core.types import Batch, Condition, Draws, Loss, Progress

NUM_CLASSES = 2
NO_DATA = Batch(None, None)


class LocalContext(Context):
    """Means over the rows at hand."""

    def mean(self, values):
        return values.detach().mean(0)


class Normalised(Objective):
    """The teacher's velocity at the prior, over the batch's mean error: a mean in the gradient, and nothing in parts."""

    uses_batch_means = True

    def __init__(self, config):
        """Without options."""

    def losses(self, models, batch, draws, progress, context):
        z, t, g = draws.noise("prior", models.teacher.sample_shape), torch.ones(len(draws.index)), draws.uniform("g")
        labels = models.teacher.sample_condition(draws)
        error = passes.velocity_with_gradient(models["student"], z, t, 0 * t, labels, g)
        error = mean_square(error - passes.teacher_velocity(models.teacher, z, t, labels, t))
        return {"student": Loss(error / context.mean(error))}


def with_normalised():
    """All plugins, and the objective ``normalised``."""
    manager, config = Manager.load(), f"{ComponentConfig.__module__}:{ComponentConfig.__name__}"
    component = Component("normalised", f"{__name__}:Normalised", config, "uses a mean over the batch", "test")
    manager.register(plugin(objectives=[component]), "normalised")
    return manager


class GivenDraws(Draws):
    """Philox draws, with some streams given: uniforms (N,), noise (N, *D), integers (N,)."""

    def __init__(self, rows, given=None, seed=3, dtype=torch.float64):
        self._philox = PhiloxDraws(seed, torch.arange(rows), dtype=dtype)
        self._given = dict(given or {})
        self.index, self.position, self.batch_size = torch.arange(rows), torch.arange(rows), rows
        self.device, self.dtype = torch.device("cpu"), dtype

    def noise(self, stream, shape):
        return self._given[stream] if stream in self._given else self._philox.noise(stream, shape)

    def uniform(self, stream):
        return self._given[stream] if stream in self._given else self._philox.uniform(stream)

    def normal(self, stream):
        return self._philox.normal(stream)

    def integers(self, stream, high):
        return self._given[stream] if stream in self._given else self._philox.integers(stream, high)

    def split(self, share):
        return self._philox.split(share)

    def rows(self, rows):
        part = GivenDraws(len(rows), {name: value[rows] for name, value in self._given.items()})
        part._philox = self._philox.rows(rows)
        return part


def philox(num, start=0, seed=3, dtype=torch.float64):
    return PhiloxDraws(seed, torch.arange(start, start + num), dtype=dtype)


def progress(images=500, step=5, total=1000):
    return Progress(images=images, step=step, total_images=total)


def models(student, teacher=None, **roles):
    return Models({name: Model(net, net) for name, net in {"student": student, **roles}.items()}, teacher)


def spied(teacher, student, **roles):
    """Models whose student is watched: the wrapped network, and the bare one."""
    wrapped, bare = Spy(student), Spy(student)
    return Models({**models(student, teacher, **roles), "student": Model(wrapped, bare)}, teacher), wrapped, bare


def step(objective, networks, draws, batch=NO_DATA, at=None):
    return dict(objective.losses(networks, batch, draws, at or progress(), LocalContext()))


def losses(objective, student, teacher, draws, x=None, condition=None, at=None):
    """With the further networks that the objective asks for, in the student's precision."""
    dtype = next(student.parameters()).dtype
    roles = {name: role.network.to(dtype) for name, role in objective.roles(student, teacher).items()}
    return step(objective, models(student, teacher, **roles), draws, Batch(x, condition), at)


def build(target, config, precision="float64"):
    return target.from_config(config, BuildContext(torch.device("cpu"), 0, lambda *_: None, precision=precision))


class Spy(nn.Module):
    """Stands for a wrapper, or for the bare network. Notes what it is asked, and whether with gradient."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.calls: list[tuple[Any, ...]] = []
        self.gradient: list[bool] = []

    def forward(self, *arguments):
        self.calls.append(tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments))
        self.gradient.append(torch.is_grad_enabled())
        return self.network(*arguments)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)


class TeacherSpy(Teacher):
    """A teacher that notes what it is asked; ``sign`` -1 answers wrongly, ``num_classes`` lets it be guided."""

    def __init__(self, teacher, sign=1.0, num_classes=None):
        super().__init__()
        self.teacher, self.sign, self.num_classes = teacher, sign, num_classes
        self.sample_shape = teacher.sample_shape
        self.calls: list[tuple[Tensor, Tensor, Condition, Tensor]] = []

    def velocity(self, x_t, t, condition):
        return self.sign * self.teacher.velocity(x_t, t, None)

    def guided_velocity(self, x_t, t, condition, weight):
        assert not x_t.requires_grad
        self.calls.append((x_t, t, condition, weight))
        return self.velocity(x_t, t, condition)

    def null_condition(self, condition):
        assert isinstance(condition, Tensor)
        return torch.full_like(condition, self.num_classes or 0)


def antithetic(velocity, x, noise, t):
    """Mirror images (x', n') of Gaussian pairs: the same x_t, and n' - x' = 2 E[n - x | x_t] - (n - x)."""
    time = t.unsqueeze(1)
    x_t, mirrored = (1 - time) * x + time * noise, 2 * velocity - (noise - x)
    return x_t - time * mirrored, x_t + (1 - time) * mirrored


def parameter_gradients(per_sample, network):
    """All gradients of the mean, flattened."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    found = torch.autograd.grad(per_sample.mean(), parameters, allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in pairs])


def flip_derivatives(monkeypatch):
    """Every derivative along a line with the wrong sign."""
    right, apply = passes.line_derivative, Stencil.apply
    monkeypatch.setattr(passes, "line_derivative", lambda *a, **k: -right(*a, **k))
    monkeypatch.setattr(Stencil, "apply", lambda self, *a: -apply(self, *a))
