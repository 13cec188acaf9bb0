"""How much bf16 autocast rounds a student's derivatives, and what each way of taking them costs: README.md.

OMP_NUM_THREADS=1 python benchmarks/derivative_rounding.py [--run runs/NAME] [--rows 256]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from freeflow_core import api
from freeflow_core.interfaces import Model
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.objective_kit.options import DerivativeOptions
from freeflow_core.objective_kit.passes import Jumps, duration_derivative, path_derivative, velocity_without_gradient

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--run", type=Path, required=True, help="folder of a finished run, whose student is asked")
parser.add_argument("--rows", type=int, default=256)
arguments = parser.parse_args()

student = api.load_student(arguments.run).student.float().eval()
draws = PhiloxDraws(0, torch.arange(arguments.rows))
t = 0.2 + 0.8 * draws.uniform("time")
x = draws.noise("noise", student.sample_shape)
labels = draws.integers("labels", student.num_classes or 1)
jumps = Jumps(x, t, t * draws.uniform("end-time"), labels, torch.ones_like(t))
model = Model(student, student)
teacher = api.load_teacher("digits")
v = teacher.velocity(x, t.float(), labels).detach()


def both(**options: object) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Along the path, in the duration, and seconds."""
    made = DerivativeOptions.model_validate(options)
    began = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        path = path_derivative(model, jumps, v, value=value, options=made)
        duration = duration_derivative(model, jumps, value=value, options=made)
    return path, duration, time.process_time() - began


value = velocity_without_gradient(model, *jumps)
exact = both(derivative="forward-mode")
print("| derivative in a bf16 run | error along the path | in the duration | CPU seconds |\n|---|---|---|---|")
for name, options in {
    "`forward-mode`": {"derivative": "forward-mode"},
    "`forward-mode`, `derivative_precision: run`": {"derivative": "forward-mode", "derivative_precision": "run"},
    "`central`": {"derivative": "central"},
}.items():
    path, duration, seconds = both(**options)
    errors = [float((found - true).norm() / true.norm()) for found, true in zip((path, duration), exact, strict=False)]
    print(f"| {name} | {errors[0]:.2%} | {errors[1]:.2%} | {seconds:.2f} |")
