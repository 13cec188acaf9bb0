"""What each way to a student's derivative costs and gives on this machine: ``freeflow doctor --measure``."""

import copy
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from freeflow_core.config import RunConfig
from freeflow_core.config.load import resolve_choice
from freeflow_core.engine.build import DTYPES, Builder, Components, build_components
from freeflow_core.engine.process import autocast, start_accelerator
from freeflow_core.engine.state import STUDENT, build_state
from freeflow_core.engine.trainer import Trainer
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import AverageVelocityStudent, Model
from freeflow_core.math.derivative import AGREES, float32_products, relative_error
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.objective_kit.options import DerivativeOptions
from freeflow_core.objective_kit.passes import (
    Jumps,
    duration_derivative,
    path_derivative,
    teacher_velocity,
    velocity_without_gradient,
)
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.cost.estimate import changed
from freeflow_core.tools.cost.rate import step_seconds
from freeflow_core.types import Check, Condition

_NOISE, _ROWS, _TIE = 0.02, 64, 1.05


@final
@dataclass(frozen=True)
class DerivativeCost:
    """One way.

    Args:
        options: of the objective, which choose it.
        step_seconds: of a training step with it.
        path_error: relative error of u's derivative along the teacher's path, against forward mode in float64.
        duration_error: that of its derivative in the duration.
    """

    options: dict[str, str]
    step_seconds: float
    path_error: float
    duration_error: float

    @property
    def error(self) -> float:
        return max(self.path_error, self.duration_error)

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())


def measure_derivatives(
    config: RunConfig,
    manager: Manager | None = None,
    *,
    trained_steps: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[DerivativeCost]:
    """All ways that the run's precision allows, each on steps taken here, by this process alone, and forgotten.

    Args:
        trained_steps: errors are those of the student after so many steps; 0: of one whose weights all have some noise,
            since a fresh one hardly depends on the duration.
        clock: what steps are timed by.

    Raises:
        ConfigError: an objective without a derivative to choose, or a student whose output is no average velocity.
    """
    registry = Registry(manager or Manager.load())
    objective = resolve_choice(registry, "objective", config.objective, "objective")
    if not isinstance(objective.options, DerivativeOptions):
        raise ConfigError(
            f"The objective {config.objective.name!r} takes no derivative that could be chosen. Measure a run with "
            "freeflow, freeflow-prediction, meanflow or another with the option derivative."
        )
    chosen, ways = objective.options, list(derivative_ways(config))
    errors = derivative_errors(config, registry, ways, step=chosen.derivative_step, trained_steps=trained_steps)
    gc.collect()
    found = []
    for options, (path, duration) in zip(ways, errors, strict=True):
        asked = objective.model_copy(update={"options": chosen.model_copy(update=options)})
        seconds = step_seconds(config.model_copy(update={"objective": asked}), registry, clock)
        found.append(DerivativeCost(options, seconds, path, duration))
        gc.collect()
    return found


def fastest(costs: Sequence[DerivativeCost]) -> DerivativeCost:
    """The fastest way that errs by less than :data:`AGREES`; the most exact of those that take as long, within 5 %."""
    exact = [cost for cost in costs if cost.error < AGREES] or [min(costs, key=lambda cost: cost.error)]
    least = min(cost.step_seconds for cost in exact)
    return min((cost for cost in exact if cost.step_seconds <= _TIE * least), key=lambda cost: cost.error)


def check_derivatives(config: RunConfig, manager: Manager | None = None) -> Iterator[Check]:
    """A line a way, and which to choose here. Raises as :func:`measure_derivatives`."""
    costs = measure_derivatives(config, manager)
    for cost in costs:
        took = f"{1e3 * cost.step_seconds:.4g} ms a step; relative error {cost.path_error:.1e} along the path"
        yield Check(str(cost), "ok", f"{took}, {cost.duration_error:.1e} in the duration")
    best = fastest(costs)
    options = " ".join(f"--set objective.{name}={value}" for name, value in best.options.items())
    yield Check("fastest derivative here", "ok", f"{options} (of those that err by less than {AGREES:g})")


def derivative_errors(
    config: RunConfig, registry: Registry, ways: Sequence[dict[str, str]], *, step: float, trained_steps: int = 0
) -> list[tuple[float, float]]:
    """Relative errors along the path and in the duration, by options; arguments as for :func:`measure_derivatives`."""
    config = changed(config, runtime={"compile": False})
    accelerator = start_accelerator(config.runtime)
    components = build_components(Builder(registry, accelerator.device, config.seed, config.runtime.precision), config)
    with float32_products(config.runtime.matmul_precision):
        student = _student(config, components, trained_steps)
        device = torch.device("cpu") if accelerator.device.type == "mps" else accelerator.device  # without float64
        exact = copy.deepcopy(student).to(device).double()
        asked, direction = _questions(config, components, accelerator.device)

        def both(network: AverageVelocityStudent, like: torch.Tensor, options: Mapping[str, Any]) -> list[torch.Tensor]:
            chosen, model = DerivativeOptions.model_validate(options), Model(network, network)
            jumps = asked._replace(x_t=asked.x_t.to(like), condition=_on(asked.condition, like.device))
            value = velocity_without_gradient(model, *jumps)
            path = path_derivative(model, jumps, direction.to(like), value=value, options=chosen)
            return [path, duration_derivative(model, jumps, value=value, options=chosen)]

        true = both(exact, torch.zeros((), device=device, dtype=torch.float64), {"derivative": "forward-mode"})
        found = []
        for options in ways:
            with autocast(accelerator.device, config.runtime.precision):
                made = both(student, asked.x_t, {**options, "derivative_step": step})
            errors = [float(relative_error(one.to(other), other)) for one, other in zip(made, true, strict=True)]
            found.append((errors[0], errors[1]))
    return found


def derivative_ways(config: RunConfig) -> Iterator[dict[str, str]]:
    """The options of all ways that the run's precision allows."""
    is_rounded = config.runtime.precision == "bf16"
    yield {"derivative": "forward-mode"}
    if is_rounded:
        yield {"derivative": "forward-mode", "derivative_precision": "run"}
    yield {"derivative": "central"}
    if not is_rounded and config.runtime.matmul_precision == "highest":
        yield {"derivative": "one-sided"}


def _student(config: RunConfig, components: Components, steps: int) -> AverageVelocityStudent:
    accelerator = start_accelerator(config.runtime)
    if not isinstance(components.student, AverageVelocityStudent):
        raise ConfigError(
            f"The student {config.student.name!r} predicts no average velocity, so that its derivative is not one that "
            "objectives take."
        )
    if steps:
        state = build_state(config, components, accelerator)
        trainer = Trainer(config, components, state, accelerator)
        for _ in range(steps):
            trainer.step()
        trainer.read_metrics()  # raises where one was not finite
        network: AverageVelocityStudent = state.roles[STUDENT].network  # type: ignore[assignment]
        return network.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        for parameter in components.student.parameters():
            parameter.add_(_NOISE * torch.randn(parameter.shape, generator=generator).to(parameter))
    return components.student.eval().requires_grad_(False)


def _questions(config: RunConfig, components: Components, device: torch.device) -> tuple[Jumps, torch.Tensor]:
    """Jumps at all times, and the direction of the path in each."""
    student, teacher = components.student, components.teacher
    dtype = DTYPES[config.runtime.precision]
    draws = PhiloxDraws(config.seed, torch.arange(min(_ROWS, config.training.batch_size)), device=device, dtype=dtype)
    t = 0.05 + 0.95 * draws.uniform("time")
    x = draws.noise("noise", student.sample_shape)
    if teacher is not None:
        condition = teacher.sample_condition(draws)
        direction = teacher_velocity(teacher, x, t, condition, torch.ones_like(t))
    else:
        condition = None if student.num_classes is None else draws.integers("label", student.num_classes)
        direction = draws.noise("direction", student.sample_shape)
    return Jumps(x, t, t * draws.uniform("end"), condition, torch.ones_like(t)), direction


def _on(condition: Condition, device: torch.device) -> Condition:
    if isinstance(condition, dict):
        return {name: part.to(device) for name, part in condition.items()}
    return None if condition is None else condition.to(device)
