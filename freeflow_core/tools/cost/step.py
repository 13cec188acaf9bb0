"""One training step, taken to see what it holds and computes. The weights it changes are thrown away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import cast, final

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from freeflow_core.config import RunConfig
from freeflow_core.engine.build import Components
from freeflow_core.engine.state import RoleState, TrainingState
from freeflow_core.engine.trainer import Trainer
from freeflow_core.tools.cost.memory import ACTIVATIONS, MemoryTracker
from freeflow_core.tools.cost.passes import TEACHER, Rows, counted_rows
from freeflow_core.tools.cost.plan import RolePlan

_MOST_STEPS = 8


@final
class PlannedProcess:
    """The part of an ``Accelerator`` that a training step uses, where nothing is started.

    It is the first of ``num_processes`` processes, working alone: what others would send, it has itself.
    """

    def __init__(self, num_processes: int, device: torch.device) -> None:
        self.num_processes = num_processes
        self.process_index = 0
        self.is_main_process = True
        self.device = device

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def reduce(self, tensor: Tensor, reduction: str = "mean") -> Tensor:
        return tensor

    def prepare_model(self, network: nn.Module) -> nn.Module:
        return network

    def no_sync(self, network: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class StepCost:
    """What one process holds and does in a step: networks, bytes of activations, peak bytes, operations.

    ``phases`` are the activations outside (False) and inside (True) of backward passes.
    """

    networks: tuple[RolePlan, ...]
    activations: int
    peak: int
    flops: float
    phases: Mapping[bool, int]


def measure_step(config: RunConfig, components: Components, state: TrainingState, process: PlannedProcess) -> StepCost:
    """Take a step, or as many as it takes until every trainable role was updated once, and report their mean.

    Memory is the largest over these steps. Optimizers have their moments from the start, as after a first step.
    """
    memory, teacher = MemoryTracker(), components.teacher
    with memory:
        plans = [_fixed_memory(memory, name, role) for name, role in state.roles.items()]
        if teacher is not None:
            weights = memory.assign(TEACHER, _tensors(teacher))
            plans.insert(0, RolePlan(TEACHER, _count(teacher), weights))
        trainer = Trainer(config, components, state, cast(Accelerator, process))
        memory.restart()
        with counted_rows({name: role.network for name, role in state.roles.items()}, teacher) as counts:
            steps = 0
            while steps < _MOST_STEPS and any(role.optimizer and not role.updates for role in state.roles.values()):
                trainer.step()
                steps += 1
    images = steps * config.training.batch_size / process.num_processes

    def with_passes(plan: RolePlan) -> RolePlan:
        rows = counts.get(plan.name, Rows()) / images
        return replace(
            plan,
            gradients=memory.largest[_gradients(plan.name)],
            gradient_passes=rows.gradient,
            other_passes=rows.plain + rows.derivative,
        )

    networks = tuple(map(with_passes, plans))
    return StepCost(networks, memory.largest[ACTIVATIONS], memory.peak, memory.flops / steps, dict(memory.phases))


def size_of(network: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(network))


def _fixed_memory(memory: MemoryTracker, name: str, role: RoleState) -> RolePlan:
    """Everything of a role but its gradients, which are followed as they come and go."""
    weights = memory.assign(f"{name} weights", _tensors(role.network))
    average = memory.assign(f"{name} average", _tensors(role.ema)) if role.ema is not None else 0
    moments = 0
    if role.optimizer is not None:
        nothing = torch.zeros(())
        for parameter in role.optimizer.parameters:
            parameter.grad = torch.zeros_like(parameter)
        role.optimizer.step(0.0, nothing, nothing)
        moments = memory.assign(f"{name} optimizer", role.optimizer.state_dict().values())
        hook = _assign_gradient(memory, _gradients(name))
        for parameter in role.optimizer.parameters:
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    return RolePlan(name, _count(role.network), weights, optimizer=moments, average=average)


def _assign_gradient(memory: MemoryTracker, kind: str) -> Callable[[Tensor], None]:
    def assign(parameter: Tensor) -> None:
        if parameter.grad is not None:
            memory.assign(kind, [parameter.grad])

    return assign


def _gradients(name: str) -> str:
    return f"{name} gradients"


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
