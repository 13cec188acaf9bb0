"""What a step costs, found by going through one: the step itself, one without memory, or one of a few rows."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from freeflow_core.config import RunConfig
from freeflow_core.engine.build import Builder, Components, build_components
from freeflow_core.engine.optimizer import RoleOptimizer
from freeflow_core.engine.process import choose_device, free_memory, is_available, planned_device_type
from freeflow_core.engine.state import RoleState, TrainingState, build_state
from freeflow_core.errors import ConfigError, DownloadError
from freeflow_core.plugin import Registry
from freeflow_core.tools.cost.step import PlannedProcess, StepCost, measure_step, size_of
from freeflow_core.weights import offline

if TYPE_CHECKING:
    from accelerate import Accelerator

    from freeflow_core.tools.cost.fake import FakeTensors

_log = logging.getLogger(__name__)
_META, _CPU = torch.device("meta"), torch.device("cpu")
_SMALL = 6 * 10**10
"""Weights of the student times values of a batch: as the default run has, a fraction of a second's work."""
_FEW_ROWS = (8, 16, 32, 64)
_WITHOUT_VALUES = (RuntimeError, TypeError, ValueError, AssertionError)
"""What comes of tensors without values where values are needed."""


@dataclass(frozen=True)
class Estimate:
    """What a step costs, and the components that took it.

    Args:
        measured_rows: None when the whole step was gone through; else the largest number of rows that was.
        reason: why not the whole step, or empty.
    """

    cost: StepCost
    components: Components
    measured_rows: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Failure:
    """Why no step could be taken without memory, and the bytes of weights, moments and averages, if known."""

    reason: str
    held: int = 0


def estimate_step(config: RunConfig, registry: Registry, device_type: str, num_processes: int) -> Estimate:
    """The cheapest way that works: a small step itself, a step without memory, a few rows of a step.

    Raises:
        ConfigError: whatever the run itself would refuse, or one that cannot be planned here.
        FreeflowError: from a component that cannot be built.
    """
    if device_type == "cpu" and num_processes == 1 and (small := _as_it_is(config, registry)) is not None:
        return small
    found = _without_memory(config, registry, device_type, num_processes)
    return _on_few_rows(config, registry, num_processes, found) if isinstance(found, _Failure) else found


def _as_it_is(config: RunConfig, registry: Registry) -> Estimate | None:
    """Take the very step where it is small: that is over before torch has loaded what steps without memory need.

    None where it is not small, or its weights would have to be fetched.
    """
    try:
        with offline():
            student = _built(config, registry, _META).student
            weights = sum(parameter.numel() for parameter in student.parameters())
            if weights * rows_of(config, 1) * math.prod(student.sample_shape) > _SMALL:
                return None
            components = _built(config, registry, _CPU)
            return Estimate(_taken(config, components, PlannedProcess(1, _CPU)), components)
    except (DownloadError, *_WITHOUT_VALUES):
        _log.debug("planning by the step itself failed", exc_info=True)
        return None


def _without_memory(config: RunConfig, registry: Registry, device_type: str, num_processes: int) -> Estimate | _Failure:
    """Go through the very step that will run, on tensors that have shapes but no values."""
    from freeflow_core.tools.cost.fake import FakeTensors  # with torch's compiler: as long as torch itself

    held = 0
    try:
        components = _built(config, registry, _META)
        state = build_state(config, components, cast("Accelerator", PlannedProcess(num_processes, _META)))
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
    except _WITHOUT_VALUES as error:
        _log.debug("planning without memory failed", exc_info=True)
        return _Failure(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", held)
    return Estimate(cost, components)


def _converted(role: RoleState, fake: FakeTensors) -> RoleState:
    for network in (role.network, role.ema):
        if network is not None:
            fake.convert(network)
    if (own := role.optimizer) is not None:
        own = RoleOptimizer(role.network, own.config, packing=own.packing)
    return dataclasses.replace(role, wrapped=role.network, optimizer=own)


def _on_few_rows(config: RunConfig, registry: Registry, num_processes: int, failure: _Failure) -> Estimate:
    """Take real steps of a few rows, and extend what grows with the rows along a straight line."""
    wanted = rows_of(config, num_processes)
    device = choose_device(config.runtime) if is_available(planned_device_type(config.runtime)) else _CPU
    free = free_memory(device.type)
    if free is not None and failure.held > free:
        raise ConfigError(
            f"This run cannot be planned without running it ({failure.reason}), and its networks need "
            f"{failure.held / 2**30:.1f} GiB, of which {free / 2**30:.1f} GiB are free here. Plan it on the machine "
            "that is to run it."
        )
    process = PlannedProcess(1, device)
    components = _built(config, registry, device)
    measured: dict[int, StepCost] = {}
    refused: ConfigError | None = None
    for rows in (wanted,) if wanted <= min(_FEW_ROWS) else _FEW_ROWS:
        small = changed(config, training={"batch_size": rows * config.training.accumulation})
        try:
            measured[rows] = _taken(small, components, process)
        except ConfigError as error:  # such as a share of the batch that is no whole number of these rows
            refused = error
        if len(measured) == 2:
            break
    if not measured:
        assert refused is not None
        raise refused
    cost = _extrapolate(measured, wanted) if len(measured) == 2 else measured[max(measured)]
    return Estimate(cost, components, max(measured), failure.reason)


def _taken(config: RunConfig, components: Components, process: PlannedProcess) -> StepCost:
    return measure_step(config, components, build_state(config, components, cast("Accelerator", process)), process)


def _extrapolate(measured: Mapping[int, StepCost], rows: int) -> StepCost:
    (few, first), (more, second) = measured.items()

    def line(low: float, high: float) -> float:
        return low + (high - low) * (rows - few) / (more - few)

    # A few rows may hold most in the backward pass, where gradients are, and many in the forward pass.
    activations = max(round(line(first.phases[phase], second.phases[phase])) for phase in second.phases)
    held = sum(network.memory - network.gradients for network in second.networks)
    peak = max(round(line(first.peak, second.peak)), held + activations)
    return dataclasses.replace(second, activations=activations, peak=peak, flops=line(first.flops, second.flops))


def rows_of(config: RunConfig, num_processes: int) -> int:
    """Rows that pass through the networks at once."""
    return config.training.batch_size // (num_processes * config.training.accumulation)


def changed(config: RunConfig, **sections: Mapping[str, Any]) -> RunConfig:
    """The configuration with other settings in some of its sections."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=dict(fields)) for name, fields in sections.items()}
    )


def _built(config: RunConfig, registry: Registry, device: torch.device) -> Components:
    return build_components(Builder(registry, device, config.seed, config.runtime.precision), config)
