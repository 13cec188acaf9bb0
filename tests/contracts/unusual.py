"""A one-file plugin of correct components that a check could take for wrong ones."""

import itertools

import torch
from pydantic import Field
from torch import nn

from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import AverageVelocityStudent, Teacher, VelocitySampler
from freeflow_core.math.flow import expand_times, uniform_grid
from freeflow_core.network_file import build_network
from freeflow_core.plugin import Component, hookimpl
from freeflow_core.types import LoadReport, NetworkState, Samples


class Options(ComponentConfig):
    """How unusual."""

    way: str = Field("plain", description="In which way.")


class UnusualTeacher(Teacher):
    """The exact velocity of a Gaussian (1, 4, 4), on unusual ways."""

    def __init__(self, config):
        super().__init__()
        self.way, self.sample_shape, self.known = config.way, (1, 4, 4), {}
        self.time_range = (0.001, 0.999) if config.way == "half-open" else (0.0, 1.0)
        self.num_classes = 3 if config.way == "labels-on-the-host" else None

    def velocity(self, x_t, t, condition):
        if self.way == "cached" and len(x_t) not in self.known:
            self.known[len(x_t)] = torch.ones(len(x_t), 1, 1, 1)
        time = expand_times(t, x_t)
        mean = 0.5 if condition is None else 0.5 + 0.1 * condition.to(x_t).reshape(-1, 1, 1, 1)
        slope = (time - (1 - time) * 0.25) / ((1 - time).square() * 0.25 + time.square())
        centred = x_t - (1 - time) * mean
        if self.way == "relu":
            centred = torch.relu(centred) - torch.relu(-centred)
        if self.way == "complex":
            turned = torch.complex(centred, torch.zeros_like(centred)) * 1j
            centred = (turned * -1j).real
        if self.way == "channels-last":
            centred = centred.contiguous(memory_format=torch.channels_last)
        if self.way == "cached":
            centred = centred * self.known[len(x_t)].to(x_t)
        return slope * centred - mean

    def null_condition(self, condition):
        return condition


class UnusualStudent(AverageVelocityStudent):
    """A small convolutional network, with layers that other students lack."""

    def __init__(self, way="plain"):
        super().__init__()
        self.way, self.sample_shape = way, (1, 4, 4)
        norm = {"batch-norm": nn.BatchNorm2d(8), "group-norm": nn.GroupNorm(2, 8), "dropout": nn.Dropout(0.5)}
        self.down = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = norm.get(way, nn.Identity())
        self.up = nn.Conv2d(8 + 4, 1, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(()))
        if way == "zero":
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    @classmethod
    def from_config(cls, config, context):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            return cls(config.way)

    def forward(self, x_t, t, s, condition, guidance):
        weight = torch.ones_like(t) if guidance is None else guidance
        planes = [expand_times(value, x_t).expand_as(x_t) for value in (t, t - s, weight)]
        inputs = torch.cat([x_t, *planes], 1)
        return self.scale * self.up(torch.cat([torch.relu(self.norm(self.down(inputs))), inputs], 1))

    def average_velocity(self, output, x_t, t, s):
        return output

    def load_teacher(self, teacher):
        return LoadReport(new=tuple(self.state_dict()))

    def network_state(self):
        return NetworkState("unusual", {"way": self.way}, self.state_dict())

    @classmethod
    def from_state(cls, state):
        return build_network(cls, state, "unusual", "unusual student")


class UnusualSampler(VelocitySampler):
    """Euler on a grid of its own, in float64 inside."""

    def __init__(self, config):
        pass

    def default_grid(self, num_steps):
        return uniform_grid(num_steps) ** 2

    @torch.no_grad()
    def sample(self, model, z, grid, condition, guidance, draws=None, on_step=None):
        times = grid.tolist()
        if any(a <= b for a, b in itertools.pairwise(times)):
            raise ValueError("the grid must fall")
        x, asked = z.double(), 0.0
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            now = torch.full((len(x),), t, dtype=z.dtype)
            weight = guidance.at(now.double())
            x = x + (s - t) * model.guided_velocity(x.to(z.dtype), now, condition, weight).double()
            asked += 1 + float((weight != 1).double().mean())
            if on_step is not None:
                on_step(i, grid[i + 1], x)
        return Samples(x.to(z.dtype), asked)


@hookimpl
def freeflow_teachers():
    return [Component("unusual-teacher", ":UnusualTeacher", ":Options")]


@hookimpl
def freeflow_students():
    return [Component("unusual-student", ":UnusualStudent", ":Options")]


@hookimpl
def freeflow_samplers():
    return [Component("unusual-sampler", ":UnusualSampler", ":Options")]
