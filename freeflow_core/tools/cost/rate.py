"""How fast a device is: given, of a run's own steps, or of one large matrix product."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch

from freeflow_core.config import RunConfig
from freeflow_core.engine.blocks import compiling
from freeflow_core.engine.build import DTYPES, Builder, build_components
from freeflow_core.engine.process import is_available, start_accelerator
from freeflow_core.engine.state import build_state
from freeflow_core.engine.trainer import Trainer
from freeflow_core.math.derivative import float32_products
from freeflow_core.plugin import Registry

_UNTIMED, _LEAST, _MOST, _SECONDS = 2, 3, 30, 5.0


class RateFrom(str, Enum):
    """Where a rate comes from; ``PRODUCTS`` is what no run exceeds."""

    GIVEN = "given"
    STEPS = "steps"
    PRODUCTS = "products"


@dataclass(frozen=True)
class Rate:
    """Floating-point operations a second of one process's device, in the precision of the networks' passes."""

    operations: float
    origin: RateFrom


def product_rate(device_type: str, precision: str) -> Rate | None:
    """Of a large matrix product, now. None when the device is not there."""
    if not is_available(device_type):
        return None
    size = 512 if device_type == "cpu" else 4096
    dtype = torch.bfloat16 if precision == "bf16" else DTYPES[precision]
    if dtype is torch.float64 and device_type == "mps":
        return None
    factor = torch.ones(size, size, device=device_type, dtype=dtype)
    seconds = []
    for _ in range(4):  # the first finds its kernel
        began = time.perf_counter()
        (factor @ factor)[0, 0].item()
        seconds.append(time.perf_counter() - began)
    return Rate(2 * size**3 / min(seconds), RateFrom.PRODUCTS)


def fresh_trainer(config: RunConfig, registry: Registry) -> Trainer:
    """A trainer over parts of its own, whose steps are forgotten. Raises what the run itself would raise."""
    accelerator = start_accelerator(config.runtime)
    components = build_components(Builder(registry, accelerator.device, config.seed, config.runtime.precision), config)
    return Trainer(config, components, build_state(config, components, accelerator), accelerator)


def step_seconds(config: RunConfig, registry: Registry, clock: Callable[[], float] = time.perf_counter) -> float:
    """What one step takes, in the mean over a few that are taken here, by this process alone, and forgotten.

    By ``clock``; on a CPU that others use too ``time.process_time`` tells more.

    Raises what the run itself would raise: weights and the device must be there, and memory for the whole step.
    """
    trainer = fresh_trainer(config, registry)
    with compiling(config.runtime), float32_products(config.runtime.matmul_precision):
        for _ in range(_UNTIMED):  # the first compile, find their kernels, and make the optimizer's moments
            trainer.step()
        trainer.read_metrics()
        steps, began = 0, clock()
        while steps < _LEAST or (steps < _MOST and clock() - began < _SECONDS):
            trainer.step()
            steps += 1
        trainer.read_metrics()  # waits for the device
        return (clock() - began) / steps
