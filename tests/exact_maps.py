"""Teachers and students whose maps are known: Gaussians, two guided classes; and any network at all. float64."""

import copy

import torch
from freeflow_toy.config import MLPPolicyStudentConfig
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher
from freeflow_toy.mlp import MLPPolicyStudent
from objective_helpers import NUM_CLASSES, GivenDraws, TeacherSpy, losses, philox
from torch import Tensor, nn

from freeflow_core.interfaces import AverageVelocityStudent, Teacher
from freeflow_core.math.flow import expand_times
from freeflow_core.testing.exact import GaussianStudent, GaussianTeacher
from freeflow_core.types import LoadReport

MEAN = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
STD = torch.tensor([0.4, 0.8, 1.5], dtype=torch.float64)


def gaussian_data(num, start=0, mean=MEAN, std=STD):
    return mean + std * philox(num, start, seed=12).noise("data", tuple(mean.shape))


def teacher_and_student(**changes):
    """The exact student of the teacher, its parameters replaced by ``changes``."""
    return GaussianTeacher(MEAN, STD), GaussianStudent(changes.get("mean", MEAN), changes.get("std", STD))


def gaussian_teacher(dims=6, seed=0, sign=1.0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dims, dims, dtype=torch.float64, generator=generator)
    covariance = root @ root.T / dims + 0.1 * torch.eye(dims, dtype=torch.float64)
    mean = torch.randn(1, dims, dtype=torch.float64, generator=generator)
    teacher: Teacher = GaussianMixtureTeacher(mean, covariances=covariance.unsqueeze(0))
    return teacher if sign == 1 else TeacherSpy(teacher, sign)


class PlainStudent(AverageVelocityStudent):
    """Its output is u; it is never saved."""

    def average_velocity(self, output, x_t, t, s):
        return output

    def load_teacher(self, teacher):
        return LoadReport()

    def network_state(self):
        raise NotImplementedError

    @classmethod
    def from_state(cls, state):
        raise NotImplementedError


class ExactGaussianStudent(PlainStudent):
    """u of :func:`gaussian_teacher`, without a difference that cancels; ``scale`` is its one parameter, exact at 1."""

    def __init__(self, teacher, scale=1.0):
        super().__init__()
        mixture = teacher.teacher if isinstance(teacher, TeacherSpy) else teacher
        self.sample_shape = teacher.sample_shape
        self.register_buffer("mean", mixture.means[0].clone())
        self.register_buffer("variance", mixture.variances[0].clone())
        self.register_buffer("basis", mixture.basis[0].clone())
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, x_t, t, s, condition, guidance):
        t, s = expand_times(t, x_t), expand_times(s, x_t)
        mean, variance, basis = self.mean.to(x_t), self.variance.to(x_t), self.basis.to(x_t)
        spread_t = ((1 - t).square() * variance + t.square()).sqrt()
        spread_s = ((1 - s).square() * variance + s.square()).sqrt()
        slope = (t + s - (2 - t - s) * variance) / (spread_t * (spread_t + spread_s))
        return self.scale * ((slope * ((x_t - (1 - t) * mean) @ basis)) @ basis.T - mean)


class ClassTeacher(Teacher):
    """Zero-mean isotropic Gaussians: class k has std[k]; the null class is the last."""

    def __init__(self, std=(0.5, 0.7, 1.6), dims=3):
        super().__init__()
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64))
        self.sample_shape = (dims,)
        self.num_classes = NUM_CLASSES
        self.calls: list[int] = []
        self.asked: list[tuple[Tensor, Tensor]] = []

    def slope(self, t, labels):
        """v = slope * x, (N,)."""
        variance = self.std.to(t)[labels].square()
        return (t - (1 - t) * variance) / ((1 - t).square() * variance + t.square())

    def velocity(self, x_t, t, condition):
        assert isinstance(condition, Tensor)
        self.calls.append(len(x_t))
        return expand_times(self.slope(t, condition), x_t) * x_t

    def guided_velocity(self, x_t, t, condition, weight):
        self.asked.append((t.detach().clone(), weight.clone()))
        return super().guided_velocity(x_t, t, condition, weight)

    def null_condition(self, condition):
        assert isinstance(condition, Tensor)
        return torch.full_like(condition, NUM_CLASSES)

    def sample_condition(self, draws):
        return draws.integers("labels", NUM_CLASSES)

    def data(self, rows, seed=0):
        """Samples of the classes and their labels."""
        labels = torch.arange(rows) % NUM_CLASSES
        noise = torch.randn(
            rows, *self.sample_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        return self.std[labels].unsqueeze(1) * noise, labels


class ExactGuidedStudent(PlainStudent):
    """The guided map of :class:`ClassTeacher`: x_s / x_t = (std_c(s) / std_c(t))^g (std_null(s) / std_null(t))^(1-g)."""

    def __init__(self, teacher, scale=1.0):
        super().__init__()
        self.teacher = copy.deepcopy(teacher)
        self.sample_shape, self.num_classes = teacher.sample_shape, NUM_CLASSES
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, x_t, t, s, condition, guidance):
        assert isinstance(condition, Tensor)
        assert guidance is not None

        def log_spread(time, labels):
            variance = self.teacher.std.to(time)[labels].square()
            return 0.5 * torch.log((1 - time).square() * variance + time.square())

        null = torch.full_like(condition, NUM_CLASSES)
        exponent = guidance * (log_spread(s, condition) - log_spread(t, condition))
        exponent = exponent + (1 - guidance) * (log_spread(s, null) - log_spread(t, null))
        slope = guidance * self.teacher.slope(t, condition) + (1 - guidance) * self.teacher.slope(t, null)
        instant = t == s
        average = -torch.expm1(exponent) / torch.where(instant, torch.ones_like(t), t - s)
        return self.scale * expand_times(torch.where(instant, slope, average), x_t) * x_t


class RandomStudent(PlainStudent):
    """A smooth random perceptron of (x_t, t, s, guidance) and of the label where there is one."""

    def __init__(self, dims=3, seed=0, dtype=torch.float64, num_classes=None):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.sample_shape, self.num_classes = (dims,), num_classes
        self.first = nn.Parameter(torch.randn(dims + 3, 16, dtype=dtype, generator=generator))
        self.second = nn.Parameter(torch.randn(16, dims, dtype=dtype, generator=generator) / 4)
        self.label = nn.Parameter(torch.randn((num_classes or 0) + 1, 16, dtype=dtype, generator=generator))

    def forward(self, x_t, t, s, condition, guidance):
        guidance = torch.ones_like(x_t[:, 0]) if guidance is None else guidance
        t, s = t.to(x_t), s.to(x_t)
        hidden = torch.cat([x_t, torch.stack([t, s, guidance], 1)], 1) @ self.first
        if isinstance(condition, Tensor):
            hidden = hidden + self.label[condition]
        return torch.tanh(hidden) @ self.second


def small_student(seed=0, dtype=torch.float64):
    """In the plane, of two classes."""
    return RandomStudent(2, seed, dtype, NUM_CLASSES)


def policy_student(sample_shape=(3,), **options):
    """A small network that emits policies; equal options, equal weights."""
    torch.manual_seed(0)
    return MLPPolicyStudent(MLPPolicyStudentConfig(sample_shape=sample_shape, **options)).double()


def normal_data(dims=3, rows=256):
    """Data that no teacher knows: residuals of an exact map vanish at any state."""
    return GivenDraws(rows, seed=4).noise("x", (dims,))


def at_exact_map(objective, sign=1.0, dtype=torch.float64, student=None):
    """The student's loss at the exact map of a Gaussian teacher, which ``sign`` -1 turns around."""
    teacher = gaussian_teacher(sign=sign).to(dtype)
    network = (student or ExactGaussianStudent(teacher)).to(dtype)
    return losses(objective, network, teacher, GivenDraws(256, dtype=dtype), normal_data(6).to(dtype))["student"]


def at_guided_map(objective):
    """The student's loss at the exact map of two guided classes."""
    teacher = ClassTeacher()
    return losses(objective, ExactGuidedStudent(teacher), teacher, GivenDraws(256), *teacher.data(256))["student"]


def largest(loss):
    """Root of the largest row."""
    return float(loss.per_sample.detach().max().sqrt())
