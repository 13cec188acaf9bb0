"""Proof by training: one-step (or few-step) students of an 8-mode mixture in 2-D, through the real engine.

The measure is the energy distance of the student's samples to exact ones, over that of the teacher's own single
Euler step, which sends every noise to the mean of the data.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from freeflow_metrics.energy import energy_distance
from freeflow_toy.gaussian_mixture import GaussianMixtureTeacher
from torch import Tensor

from freeflow_core import api
from freeflow_core.config import load_run_config
from freeflow_core.interfaces import BuildContext, Student
from freeflow_core.math.flow import linear_interpolate
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.plugin import Manager, Registry

MIXTURE: dict[str, Any] = {"layout": "ring", "num_modes": 8, "radius": 2.0, "std": 0.2}
NUM_SAMPLES = 4096
LIMIT = 0.1
"""A student must come to at most this share of the teacher's single Euler step."""


@dataclass(frozen=True)
class Proof:
    """One method on the mixture.

    Args:
        objective: its name and options.
        forwards: cost of one image in network forwards (backward counts two), stated by the method.
        data: trained on exact samples of the mixture; False: data-free.
        teacher: trained with the teacher; False: from data alone.
        steps: steps the student is sampled with; above 1 where the paper says so.
        four_steps: measure four steps too.
        renoise: sample as consistency models do, with fresh noise between steps.
        velocity: sample with Euler steps of u(x, t, t): the method teaches a velocity and no jumps.
        images, batch_size, learning_rate: the budget.
        student: options of the mlp.
        overrides: further run settings, ``{"training": {...}}``, laid over the rest.
        mixture: options of the mixture other than :data:`MIXTURE`.
    """

    objective: dict[str, Any]
    forwards: float
    data: bool = True
    teacher: bool = True
    steps: int = 1
    four_steps: bool = False
    renoise: bool = False
    velocity: bool = False
    images: int = 200_000
    batch_size: int = 256
    learning_rate: float = 2e-3
    student: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    mixture: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The objective's."""
        return str(self.objective["name"])

    def settings(self, seed: int) -> dict[str, Any]:
        """The run's configuration."""
        mixture = {"name": "gaussian-mixture", **MIXTURE, **self.mixture}
        values: dict[str, Any] = {
            "name": "proof",
            "seed": seed,
            "teacher": mixture if self.teacher else None,
            "student": {"name": "mlp", "width": 96, "depth": 3, "sample_shape": [2], **self.student},
            "objective": self.objective,
            "source": {**mixture, "seed": seed} if self.data else {"name": "prior"},
            "codec": {"name": "states"},
            "training": {
                "images": self.images,
                "batch_size": self.batch_size,
                "optimizer": {"learning_rate": self.learning_rate, "beta2": 0.99, "schedule": "cosine"},
                "ema": {"halflife_images": max(1, self.images // 40), "rampup_ratio": None},
            },
            "logging": {"every_images": self.images},
            "samples": {"every_images": None},
            "evaluation": {"enabled": False},
            "trackers": [],
            "runtime": {"device": "cpu", "threads": 1},
        }
        return _merged(values, self.overrides)


@dataclass(frozen=True)
class Outcome:
    """What a proof found: energy distances to exact samples.

    ``ratio`` is ``student / euler``, ``floor`` the distance of other exact samples to the same ones, ``four_steps`` the
    student's in four steps (NaN where that was not asked).

    ``seconds`` of processor time, on the one thread it has, so that a busy machine changes nothing.
    """

    proof: Proof
    seed: int
    student: float
    euler: float
    floor: float
    four_steps: float
    seconds: float

    @property
    def ratio(self) -> float:
        return self.student / self.euler

    def __str__(self) -> str:
        p = self.proof
        few = "" if math.isnan(self.four_steps) else f"four steps {self.four_steps / self.euler:.2%}, "
        return (
            f"{p.name}: {p.images:,} images, {p.images * p.forwards:,.0f} forwards, {p.steps} step(s), "
            f"seed {self.seed}: energy {self.student:.4f} of {self.euler:.4f} = {self.ratio:.2%} "
            f"({few}floor {self.floor / self.euler:.2%}), {self.seconds:.1f} s"
        )


def prove(proof: Proof, output: Path, manager: Manager, seed: int = 0) -> Outcome:
    """Train as ``freeflow distill`` does (``pretrain`` without a teacher), then measure the averaged student."""
    config = load_run_config(
        Registry(manager), "distill" if proof.teacher else "pretrain", overrides=proof.settings(seed)
    )
    began = time.process_time()
    result = (api.distill if proof.teacher else api.pretrain)(config, output=output, manager=manager)
    seconds = time.process_time() - began
    student = api.load_student(result.folder, manager=manager).student
    teacher = mixture_teacher(manager, **proof.mixture)
    exact, others = exact_samples(teacher, seed=1), exact_samples(teacher, seed=2)
    z, labels = noise_and_labels(teacher, seed=3)
    one = torch.ones(len(z), dtype=torch.float64)
    euler = z - teacher.velocity(z, one, labels)
    x = sample_student(student, z, labels, proof.steps, renoise=proof.renoise, velocity=proof.velocity)
    four = math.nan
    if proof.four_steps:
        few = sample_student(student, z, labels, 4, renoise=proof.renoise)
        four = energy_distance(few, exact)
    return Outcome(
        proof,
        seed,
        student=energy_distance(x, exact),
        euler=energy_distance(euler, exact),
        floor=energy_distance(others, exact),
        four_steps=four,
        seconds=seconds,
    )


def mixture_teacher(manager: Manager, **options: Any) -> GaussianMixtureTeacher:
    """The exact teacher in float64."""
    built = api.load_teacher("gaussian-mixture", options={**MIXTURE, **options}, manager=manager)
    assert isinstance(built, GaussianMixtureTeacher)
    return built.double()


def noise_and_labels(teacher: GaussianMixtureTeacher, seed: int) -> tuple[Tensor, Any]:
    """(NUM_SAMPLES, *D) prior draws and labels that cover the classes in turn."""
    index = torch.arange(NUM_SAMPLES)
    z = PhiloxDraws(seed, index, dtype=torch.float64).noise("proof-prior", teacher.sample_shape)
    return z, teacher.balanced_condition(index)


def exact_samples(teacher: GaussianMixtureTeacher, seed: int) -> Tensor:
    """(NUM_SAMPLES, *D) samples of the data."""
    draws = PhiloxDraws(seed, torch.arange(NUM_SAMPLES), dtype=torch.float64)
    return teacher.sample_data(draws, teacher.balanced_condition(draws.index))


@torch.no_grad()
def sample_student(
    student: Student,
    z: Tensor,
    labels: Any,
    steps: int,
    *,
    renoise: bool = False,
    velocity: bool = False,
    guidance: float = 1.0,
) -> Tensor:
    """Deterministic jumps along a uniform grid, or jumps to 0 with fresh noise in between; float32, as trained.

    ``velocity``: Euler steps along that grid in place of jumps.
    """
    x = z.float()
    weight = torch.full((len(x),), guidance, dtype=torch.float64)
    for i in range(steps):
        t = torch.full((len(x),), 1 - i / steps, dtype=torch.float64)
        s = torch.full((len(x),), 1 - (i + 1) / steps, dtype=torch.float64)
        if renoise:
            x = student.flow_map(x, t, torch.zeros_like(s), labels, weight)
            noise = PhiloxDraws(11 + i, torch.arange(len(x))).noise("proof-renoise", tuple(x.shape[1:]))
            x = linear_interpolate(x, noise, s)
        elif velocity:
            x = x - student.average_velocity(student(x, t, t, labels, weight), x, t, t) / steps
        else:
            x = student.flow_map(x, t, s, labels, weight)
    return x.double()


def build_context(teacher: Any = None, precision: str = "float32") -> BuildContext:
    """For building a component by hand."""
    return BuildContext(torch.device("cpu"), 0, lambda *_: None, teacher, precision=precision)


def _merged(values: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in extra.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
