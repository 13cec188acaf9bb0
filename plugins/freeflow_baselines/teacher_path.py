"""The teacher's own trajectory from noise to data, with a fixed number of steps."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from freeflow_baselines.config_generative import TrajectoryOptions
from freeflow_core.interfaces import Teacher
from freeflow_core.math.flow import uniform_grid
from freeflow_core.objective_kit.passes import teacher_velocity
from freeflow_core.types import Condition, Guidance


@torch.no_grad()
def end_point(
    teacher: Teacher, z: Tensor, condition: Condition, guidance: Tensor, options: TrajectoryOptions
) -> Tensor:
    """The state (N, *D) at t = 0 of the trajectory that starts at ``z`` (N, *D), t = 1, by Euler's or Heun's method.

    Guidance is decided at each step's start, so that a step across an interval's end follows one smooth field.

    Args:
        condition: N conditions.
        guidance: (N,) weights on the host.
        options: the method, its steps, and the interval that is guided.
    """
    schedule = Guidance(guidance, *options.guidance_interval)
    x = z
    for time, after in itertools.pairwise(uniform_grid(options.solver_steps).unbind()):
        t, s = time.expand(len(x)), after.expand(len(x))
        weight, step = schedule.at(t), float(after - time)
        slope = teacher_velocity(teacher, x, t, condition, weight)
        if options.solver == "heun":
            slope = (slope + teacher_velocity(teacher, x + step * slope, s, condition, weight)) / 2
        x = x + step * slope
    return x
