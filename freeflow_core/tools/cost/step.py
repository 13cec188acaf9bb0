"""One training step, taken to see what it holds and computes. The weights it changes are thrown away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from freeflow_core.config import RunConfig
from freeflow_core.engine.build import Components
from freeflow_core.engine.state import RoleState, TrainingState
from freeflow_core.engine.trainer import Trainer
from freeflow_core.tools.cost.ledger import ACTIVATIONS, Ledger
from freeflow_core.tools.cost.passes import TEACHER, counted_passes
from freeflow_core.tools.cost.plan import RolePlan
from freeflow_core.tools.cost.process import PlannedProcess

_MOST_STEPS = 8


@dataclass(frozen=True)
class StepCost:
    """What one process holds and does in a step: networks, bytes of activations, peak bytes, operations."""

    networks: tuple[RolePlan, ...]
    activations: int
    peak: int
    flops: float


def measure_step(config: RunConfig, components: Components, state: TrainingState, process: PlannedProcess) -> StepCost:
    """Take a step, or as many as it takes until every trainable role was updated once, and report their mean.

    Memory is the largest over these steps. Optimizers have their moments from the start, as after a first step.
    """
    ledger = Ledger()
    teacher = components.teacher
    with ledger:
        fixed = [_fixed_memory(ledger, name, role) for name, role in state.roles.items()]
        if teacher is not None:
            weights = ledger.assign(TEACHER, _tensors(teacher))
            fixed.insert(0, RolePlan(TEACHER, _count(teacher), weights))
        trainer = Trainer(config, components, state, cast(Accelerator, process))
        networks = {name: role.network for name, role in state.roles.items()}
        ledger.restart()
        with counted_passes(networks, teacher) as counts:
            steps = 0
            while steps < _MOST_STEPS and any(role.optimizer and not role.updates for role in state.roles.values()):
                trainer.step()
                steps += 1
    images = steps * config.training.batch_size / process.num_processes
    plans = [
        RolePlan(
            role.name,
            role.parameters,
            role.weights,
            ledger.largest[_gradients(role.name)],
            role.optimizer,
            role.average,
            counts[role.name].gradient_rows / images,
            counts[role.name].other_rows / images,
        )
        for role in fixed
    ]
    return StepCost(tuple(plans), ledger.largest[ACTIVATIONS], ledger.peak, ledger.flops / steps)


def size_of(network: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(network))


def _fixed_memory(ledger: Ledger, name: str, role: RoleState) -> RolePlan:
    """Everything of a role but its gradients, which are followed as they come and go."""
    weights = ledger.assign(f"{name} weights", _tensors(role.network))
    average = ledger.assign(f"{name} average", _tensors(role.ema)) if role.ema is not None else 0
    moments = 0
    if role.optimizer is not None:
        nothing = torch.zeros(())
        for parameter in role.optimizer.parameters:
            parameter.grad = torch.zeros_like(parameter)
        role.optimizer.step(0.0, nothing, nothing)
        moments = ledger.assign(f"{name} optimizer", role.optimizer.state_dict().values())
        for parameter in role.optimizer.parameters:
            hook = _assign_gradient(ledger, _gradients(name))
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    return RolePlan(name, _count(role.network), weights, optimizer=moments, average=average)


def _assign_gradient(ledger: Ledger, kind: str) -> Callable[[Tensor], None]:
    def assign(parameter: Tensor) -> None:
        ledger.assign(kind, [parameter.grad])

    return assign


def _gradients(name: str) -> str:
    return f"{name} gradients"


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
