"""What a run will cost, before it starts: weights, memory, and network passes counted on a real step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from freeflow_core.config import RunConfig
from freeflow_core.engine.build import DTYPES, Components
from freeflow_core.engine.context import CollectingContext, ProcessContext
from freeflow_core.engine.state import TrainingState
from freeflow_core.interfaces import Context, Models, Teacher
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.types import Batch, Condition, Progress

_GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """Lines to print (label, value), and warnings."""

    rows: list[tuple[str, str]]
    warnings: list[str]


@dataclass
class PassCount:
    """Rows of the batch that went through one network, with and without gradient."""

    gradient_rows: int = 0
    other_rows: int = 0

    def add(self, x: Tensor) -> None:
        """Count one pass of ``x`` (N, *D)."""
        if torch.is_grad_enabled():
            self.gradient_rows += x.shape[0]
        else:
            self.other_rows += x.shape[0]


def make_plan(config: RunConfig, components: Components, state: TrainingState, accelerator: Accelerator) -> Plan:
    """Parameters, memory by kind, and passes per step of ``config``. Nothing is trained or written."""
    rows: list[tuple[str, str]] = []
    teacher_bytes = _bytes(components.teacher) if components.teacher is not None else 0
    if components.teacher is not None:
        rows.append(
            ("teacher", f"{config.teacher.name if config.teacher else ''}, {_count(components.teacher)} weights")
        )
    total = teacher_bytes
    for name, role in state.roles.items():
        weights = _bytes(role.network)
        parts = {"weights": weights}
        if role.optimizer is not None:
            parts |= {"gradients": weights, "optimizer": 2 * weights}
        if role.ema is not None:
            parts["average"] = weights
        total += sum(parts.values())
        detail = ", ".join(f"{part} {size / _GIB:.3f}" for part, size in parts.items())
        rows.append((f"role {name}", f"{_count(role.network)} weights; GiB: {detail}"))
    if components.teacher is not None:
        rows.append(("student from teacher", str(components.load_report)))
    rows.append(("memory without activations", f"{total / _GIB:.3f} GiB per process"))
    batch, training = config.training.batch_size, config.training
    rows.append(
        ("batch", f"{batch} over {accelerator.num_processes} process(es) x {training.accumulation} micro-batches")
    )
    rows.append(("length", f"{training.images:,} images, {training.steps:,} steps"))
    passes = count_passes(config, components, state, accelerator)
    rows.append(("passes per step (share of the batch)", "; ".join(f"{k} {v}" for k, v in passes.items())))
    warnings = []
    if training.accumulation > 1 and components.objective.uses_batch_means:
        warnings.append(
            "This objective needs means over the whole batch: with accumulation, every micro-batch is passed once "
            "more without gradient."
        )
    return Plan(rows, warnings)


def count_passes(
    config: RunConfig, components: Components, state: TrainingState, accelerator: Accelerator
) -> dict[str, str]:
    """Rows through each network in one step over rows of the batch, counted while the losses are computed once."""
    parts = accelerator.num_processes * config.training.accumulation
    rows = config.training.batch_size // parts
    position = torch.arange(rows)
    draws = PhiloxDraws(
        config.seed,
        position,
        batch_size=config.training.batch_size,
        position=position,
        device=accelerator.device,
        dtype=DTYPES[config.runtime.precision],
    )
    batch = _first_batch(components, draws, rows, accelerator)
    networks: dict[str, nn.Module] = {name: role.network for name, role in state.roles.items()}
    models: Models = state.models(components)
    context: Context = CollectingContext() if parts > 1 else ProcessContext(accelerator)
    with _counting(networks, components.teacher) as counts:
        progress = Progress(0, 0, config.training.images, dict.fromkeys(state.roles, 0))
        components.objective.losses(models, batch, draws, progress, context)
    return {
        name: f"{c.gradient_rows / rows:.2f} with and {c.other_rows / rows:.2f} without gradient"
        for name, c in counts.items()
        if c.gradient_rows or c.other_rows
    }


@contextmanager
def _counting(networks: dict[str, nn.Module], teacher: Teacher | None) -> Iterator[dict[str, PassCount]]:
    """Count rows through each network's ``forward``, and through the teacher's ``velocity``."""
    counts = {name: PassCount() for name in networks}
    handles = [
        network.register_forward_pre_hook(lambda module, inputs, count=counts[name]: count.add(inputs[0]))
        for name, network in networks.items()
    ]
    if teacher is not None:
        counts["teacher"] = PassCount()
        velocity = teacher.velocity

        def counted(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            counts["teacher"].add(x_t)
            return velocity(x_t, t, condition)

        vars(teacher)["velocity"] = counted  # shadows the method for this one step
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
        if teacher is not None:
            del vars(teacher)["velocity"]


def _first_batch(components: Components, draws: PhiloxDraws, rows: int, accelerator: Accelerator) -> Batch:
    if components.source.has_data:
        batch = next(components.source.batches(0, rows, 0, 1))
        assert batch.x is not None
        return Batch(components.codec.encode(batch.x.to(accelerator.device)).to(draws.dtype), batch.condition)
    return Batch(None, components.teacher.sample_condition(draws) if components.teacher is not None else None)


def _bytes(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


def _count(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()):,}"
