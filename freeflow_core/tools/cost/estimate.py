"""From a configuration to its plan: a step on fake tensors, or, where that fails, on a few real rows."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn

from freeflow_core.config import RunConfig
from freeflow_core.engine.build import Builder, Components, build_components
from freeflow_core.engine.optimizer import RoleOptimizer
from freeflow_core.engine.process import choose_device, free_memory, is_available, planned_device_type
from freeflow_core.engine.state import RoleState, TrainingState, build_state
from freeflow_core.errors import ConfigError
from freeflow_core.plugin import Registry
from freeflow_core.tools.cost.fake import FakeTensors
from freeflow_core.tools.cost.plan import Plan, warnings_for
from freeflow_core.tools.cost.step import PlannedProcess, StepCost, measure_step, size_of

_log = logging.getLogger(__name__)
_META, _CPU = torch.device("meta"), torch.device("cpu")
_FEW_ROWS = (8, 16, 32, 64)


@dataclass(frozen=True)
class _Estimate:
    cost: StepCost
    components: Components
    measured_rows: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Failure:
    """Why no step could be taken without memory, and the bytes of weights, moments and averages, if known."""

    reason: str
    held: int = 0


def make_plan(config: RunConfig, registry: Registry, num_processes: int = 1) -> Plan:
    """What ``config`` costs each of ``num_processes``. Nothing is started, trained or written.

    Needs neither the device, nor its memory, nor (for teachers that can be built from their architecture) weights.

    Raises:
        ConfigError: whatever the run itself would refuse.
        FreeflowError: from a component that cannot be built.
    """
    # Compiled networks hold no more than others; compiling them takes longer than all the rest.
    config = _changed(config, runtime={"compile": False})
    device_type = planned_device_type(config.runtime)
    short = _shortened(config, num_processes)
    found = _without_memory(short, registry, device_type, num_processes)
    if isinstance(found, _Failure):
        found = _on_few_rows(short, registry, num_processes, found)
    cost, training, teacher = found.cost, config.training, found.components.teacher
    buckets = sum(network.gradients for network in cost.networks) if num_processes > 1 else 0
    plan = Plan(
        device=device_type,
        precision=config.runtime.precision,
        num_processes=num_processes,
        batch_size=training.batch_size,
        rows=_rows(config, num_processes),
        accumulation=training.accumulation,
        images=training.images,
        steps=training.steps,
        networks=cost.networks,
        activations=cost.activations,
        buckets=buckets,
        peak=cost.peak + buckets,
        flops_per_step=round(cost.flops * num_processes * training.accumulation / short.training.accumulation),
        load_report=None if teacher is None else str(found.components.load_report),
        free=free_memory(device_type),
        extrapolated_from=found.measured_rows,
        teacher="" if teacher is None else teacher.provenance,
    )
    return dataclasses.replace(plan, warnings=warnings_for(plan, config, found.components.objective, found.reason))


def _without_memory(
    config: RunConfig, registry: Registry, device_type: str, num_processes: int
) -> _Estimate | _Failure:
    """Go through the very step that will run, on tensors that have shapes but no values."""
    held = 0
    try:
        components = build_components(Builder(registry, _META, config.seed, config.runtime.precision), config)
        state = build_state(config, components, cast(Accelerator, PlannedProcess(num_processes, _META)))
        held = 0 if components.teacher is None else size_of(components.teacher)
        for role in state.roles.values():
            held += (1 + 2 * (role.optimizer is not None) + (role.ema is not None)) * size_of(role.network)
        fake = FakeTensors(device_type)
        for part in (components.teacher, components.codec):
            if isinstance(part, nn.Module):
                fake.convert(part)
        roles = {name: _converted(role, fake) for name, role in state.roles.items()}
        with fake.active():
            cost = measure_step(config, components, TrainingState(roles), PlannedProcess(num_processes, _CPU))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # what comes of tensors without values
        _log.debug("planning without memory failed", exc_info=True)
        return _Failure(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", held)
    return _Estimate(cost, components)


def _converted(role: RoleState, fake: FakeTensors) -> RoleState:
    """A role built on the meta device, with tensors that a step can be taken on."""
    for network in (role.network, role.ema):
        if network is not None:
            fake.convert(network)
    optimizer = None if role.optimizer is None else RoleOptimizer(role.network, role.optimizer.config)
    return dataclasses.replace(role, wrapped=role.network, optimizer=optimizer)


def _on_few_rows(config: RunConfig, registry: Registry, num_processes: int, failure: _Failure) -> _Estimate:
    """Take real steps of a few rows, and extend what grows with the rows along a straight line."""
    wanted = _rows(config, num_processes)
    device = choose_device(config.runtime) if is_available(planned_device_type(config.runtime)) else _CPU
    free = free_memory(device.type)
    if free is not None and failure.held > free:
        raise ConfigError(
            f"This run cannot be planned without running it ({failure.reason}), and its networks need "
            f"{failure.held / 2**30:.1f} GiB, of which {free / 2**30:.1f} GiB are free here. Plan it on the machine "
            "that is to run it."
        )
    process = PlannedProcess(1, device)
    components = build_components(Builder(registry, device, config.seed, config.runtime.precision), config)
    measured: dict[int, StepCost] = {}
    refused: ConfigError | None = None
    for rows in (wanted,) if wanted <= min(_FEW_ROWS) else _FEW_ROWS:
        small = _changed(config, training={"batch_size": rows * config.training.accumulation})
        try:
            state = build_state(small, components, cast(Accelerator, process))
            measured[rows] = measure_step(small, components, state, process)
        except ConfigError as error:  # such as a share of the batch that is no whole number of these rows
            refused = error
        if len(measured) == 2:
            break
    if not measured:
        assert refused is not None
        raise refused
    cost = _extrapolate(measured, wanted) if len(measured) == 2 else measured[max(measured)]
    return _Estimate(cost, components, max(measured), failure.reason)


def _extrapolate(measured: Mapping[int, StepCost], rows: int) -> StepCost:
    (few, first), (more, second) = measured.items()

    def line(low: float, high: float) -> float:
        return low + (high - low) * (rows - few) / (more - few)

    # A few rows may hold most in the backward pass, where gradients are, and many in the forward pass.
    activations = max(round(line(first.phases[phase], second.phases[phase])) for phase in second.phases)
    held = sum(network.memory - network.gradients for network in second.networks)
    peak = max(round(line(first.peak, second.peak)), held + activations)
    return dataclasses.replace(second, activations=activations, peak=peak, flops=line(first.flops, second.flops))


def _shortened(config: RunConfig, num_processes: int) -> RunConfig:
    """Two micro-batches instead of many: each further one adds the same passes, and no memory."""
    training = config.training
    whole = training.batch_size % (num_processes * training.accumulation) == 0  # else the run would refuse it
    if training.accumulation <= 2 or not whole:
        return config
    return _changed(
        config, training={"batch_size": 2 * training.batch_size // training.accumulation, "accumulation": 2}
    )


def _rows(config: RunConfig, num_processes: int) -> int:
    return config.training.batch_size // (num_processes * config.training.accumulation)


def _changed(config: RunConfig, **sections: Mapping[str, Any]) -> RunConfig:
    """The configuration with some fields of some sections replaced."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=dict(fields)) for name, fields in sections.items()}
    )
