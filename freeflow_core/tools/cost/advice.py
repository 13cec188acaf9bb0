"""What to tell a user about a plan before the run starts."""

from __future__ import annotations

from freeflow_core.config import RunConfig
from freeflow_core.interfaces import Objective
from freeflow_core.tools.cost.plan import Plan

_GIB = 2**30


def warnings_for(plan: Plan, config: RunConfig, objective: Objective, reason: str) -> tuple[str, ...]:
    """Memory that will not do, passes that a setting adds, and figures that are not exact; ``reason``: why not."""
    found = [_memory(plan, config)]
    if plan.accumulation > 1 and objective.uses_batch_means:
        found.append(
            "This objective needs means over the whole batch: with accumulation, every micro-batch is passed once "
            "more without gradient."
        )
    if plan.extrapolated_from is not None:
        found.append(
            f"This run could not be planned without running it ({reason}). A few real steps of up to "
            f"{plan.extrapolated_from} rows were measured instead; activations, peak and operations for {plan.rows} "
            "rows are extrapolated from them."
        )
    return tuple(text for text in found if text)


def _memory(plan: Plan, config: RunConfig) -> str:
    if plan.free is None or plan.total <= plan.free:
        return ""
    fixed = sum(network.memory for network in plan.networks) + plan.buckets
    text = (
        f"A step needs about {plan.total / _GIB:.1f} GiB, but {plan.free / _GIB:.1f} GiB are free on this machine "
        f"({plan.device})."
    )
    if fixed > plan.free:
        return f"{text} Weights, gradients and optimizer alone take {fixed / _GIB:.1f} GiB: use a smaller student."
    runtime, ways = config.runtime, []
    if not runtime.activation_checkpointing:
        ways.append("runtime.activation_checkpointing=true")
    if plan.rows > 1:
        ways.append(f"training.accumulation={_next_divisor(plan)} or more")
    if runtime.precision != "bf16":
        ways.append("runtime.precision=bf16")
    return f"{text} To save memory: {', '.join(ways)}." if ways else text


def _next_divisor(plan: Plan) -> int:
    """The least larger accumulation that divides this process's share of the batch."""
    share = plan.rows * plan.accumulation
    return next(n for n in range(plan.accumulation + 1, share + 1) if share % n == 0)
