"""A one-file plugin whose option says what its author got wrong. Tests load it by path, as a user would."""

import copy
from typing import Any

import torch
from pydantic import Field
from torch import nn

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import AverageVelocityStudent, Objective, Role, Teacher
from freeflow_core.math.flow import expand_times, mean_square
from freeflow_core.objective_kit.passes import teacher_velocity, velocity_with_gradient
from freeflow_core.plugin import Component, hookimpl
from freeflow_core.types import Loss


class Config(ComponentConfig):
    """What is wrong."""

    mistake: str = Field("none", description="What the author got wrong; none: nothing.")


class PlaneTeacher(Teacher):
    """The exact velocity of a Gaussian in the plane."""

    def __init__(self, config):
        super().__init__()
        self.mistake = mistake = config.mistake
        self.sample_shape = (2,)
        self.num_classes = 3 if mistake in ("condition", "labels") else None
        self.mean = nn.Parameter(torch.tensor([0.5, -1.0]))
        self.std = nn.Parameter(torch.tensor([0.5, 2.0]))
        self.calls = 0.0
        self.hidden = torch.ones(2, requires_grad=mistake == "trainable")

    def velocity(self, x_t, t, condition):
        if self.mistake == "in-place":
            x_t.mul_(1)
            x_t += 1e-3
        if self.mistake == "state":
            self.calls += 1e-2
            x_t = x_t + self.calls
        if self.mistake == "random":
            x_t = x_t + 1e-2 * torch.randn_like(x_t)
        if self.mistake == "rows":
            x_t = x_t - 0.1 * x_t.mean(0)
        if self.mistake == "float64-only":
            x_t = x_t @ torch.eye(2, dtype=torch.float64)
        if self.mistake == "one-time":
            t = t[:1].expand(len(t))
        if self.mistake == "blind-time":
            t = torch.tensor(t.detach().tolist(), dtype=t.dtype)
        if self.mistake == "thousand":
            t = t / 1000
        if self.mistake in ("time", "time-and-sign"):
            t = 1 - t
        if self.mistake == "squared-time":
            t = t.square()
        if self.mistake == "large-states":
            x_t = 2 * x_t
        time = expand_times(t, x_t)
        mean, variance = self.mean.to(x_t), self.std.to(x_t).square()
        slope = (time - (1 - time) * variance) / ((1 - time).square() * variance + time.square())
        v = slope * (x_t - (1 - time) * mean) - mean
        if self.mistake == "zero":
            return 0 * v
        if self.mistake == "scaled":
            return 3 * v
        if self.mistake == "predicts-data":
            return x_t - time * v
        if self.mistake == "shape":
            return v[:, :1]
        if self.mistake == "dtype":
            return v.double()
        if self.mistake == "device":
            return v.to("meta")
        if self.mistake == "trainable":
            return v * self.hidden
        if self.mistake == "crash":
            return v @ torch.ones(3, 3)
        return -v if self.mistake in ("sign", "time-and-sign") else v

    def null_condition(self, condition):
        return condition

    def sample_condition(self, draws):
        return draws.integers("label", 3) + 7 if self.mistake == "labels" else None

    def balanced_condition(self, index):
        return None


class PlaneObjective(Objective):
    """The student's instantaneous velocity follows the teacher's, on noise alone."""

    requires = AverageVelocityStudent

    def __init__(self, config):
        self.mistake = config.mistake

    def roles(self, student, teacher):
        if self.mistake == "trains-teacher":
            assert teacher is not None
            return {"critic": Role(teacher, trainable=True)}
        if self.mistake in ("idle-role", "frozen-role"):
            return {"critic": Role(copy.deepcopy(student), trainable=self.mistake == "idle-role")}
        return {}

    def losses(self, models, batch, draws, progress, context):
        x_t = draws.noise("prior", models["student"].bare.sample_shape)
        t, weight = draws.uniform("t"), torch.ones(len(x_t), dtype=torch.float64)
        v = teacher_velocity(models.teacher, x_t, t, batch.condition, weight)
        u = velocity_with_gradient(models["student"], x_t, t, t, batch.condition, weight)
        per_sample: Any = mean_square(u - v)
        if self.mistake == "random":
            per_sample = per_sample * torch.rand(len(per_sample))
        if self.mistake == "remembers":
            self.seen = getattr(self, "seen", 0.0) + 0.5
            per_sample = per_sample * self.seen
        if self.mistake == "wrong-sign":
            per_sample = mean_square(u + v)
        if self.mistake == "batch-loss":
            per_sample = per_sample.mean()
        if self.mistake == "batch-loss-of-one":
            per_sample = per_sample.mean().reshape(1)
        if self.mistake == "detached":
            per_sample = per_sample.detach()
        if self.mistake == "number":
            per_sample = float(per_sample.mean())
        losses = {"student": Loss(per_sample)}
        if self.mistake in ("unknown-role", "frozen-role"):
            losses["critic"] = losses["student"]
        if self.mistake == "missing-role":
            losses["student"] = Loss(mean_square(models["critic"].bare(x_t, t, t, batch.condition, weight)))
        return {} if self.mistake == "no-loss" else losses


def component(kind):
    """One component of this file."""
    target = f"{__name__}:Plane{kind.capitalize()}"
    return [Component(f"plane-{kind}", target, f"{__name__}:Config", f"A {kind} with a mistake by option")]


@hookimpl
def freeflow_teachers():
    """The teacher."""
    return component("teacher")


@hookimpl
def freeflow_objectives():
    """The objective."""
    return component("objective")
