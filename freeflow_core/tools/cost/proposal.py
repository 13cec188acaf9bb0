"""Settings that make a run fit its device, found by planning: the ones that cost the fewest operations."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from freeflow_core.config import RunConfig
from freeflow_core.errors import ConfigError
from freeflow_core.plugin import Registry
from freeflow_core.tools.cost.plan import Plan, changed, make_plan

_TRIES = 4

Changes = Mapping[str, Mapping[str, Any]]
"""Settings by section."""


@dataclass(frozen=True)
class Proposal:
    """``settings`` as ``a.b=c``, with which a run fits, and its ``plan`` with them."""

    settings: tuple[str, ...]
    plan: Plan


def propose(config: RunConfig, plan: Plan, registry: Registry) -> Proposal | None:
    """The first that fits of: recomputed activations, micro-batches, both; None where none does.

    Micro-batches come before recomputed activations unless they pass every row twice.

    Args:
        plan: of ``config``.
    """
    memory = plan.available
    if memory is None:
        return None
    usable: int = memory
    recomputed: Changes = {"runtime": {"activation_checkpointing": True}}
    planned: dict[bool, Plan] = {config.runtime.activation_checkpointing: plan}

    def fits(changes: Changes) -> Proposal | None:
        other = changed(config, **changes)
        try:
            found = make_plan(
                other, registry, plan.num_processes, device_memory=plan.device_memory, rate=plan.rate, free=plan.free
            )
        except ConfigError:  # a student that cannot recompute, or a batch that cannot be split like this
            return None
        planned.setdefault(other.runtime.activation_checkpointing, found)
        return Proposal(_as_settings(changes), found) if found.total <= usable else None

    def micro_batches(base: Changes) -> Proposal | None:
        known = planned.get(bool(base) or config.runtime.activation_checkpointing)
        if known is None or (spare := usable - known.total + known.activations) <= 0:
            return None
        # As many as it takes if all activations grew with the rows; some do not, so that it may take more.
        fewest = config.training.accumulation * known.activations / spare
        enough = [number for number in _accumulations(config, plan.num_processes) if number >= 0.8 * fewest]
        tries = (fits({**base, "training": {"accumulation": number}}) for number in enough[:_TRIES])
        return next((found for found in tries if found is not None), None)

    ways: list[Callable[[], Proposal | None]] = [lambda: micro_batches({})]
    if not config.runtime.activation_checkpointing:
        ways.insert(0 if plan.twice_with_micro_batches else 1, lambda: fits(recomputed))
        ways.append(lambda: micro_batches(recomputed))
    return next((found for way in ways if (found := way()) is not None), None)


def _accumulations(config: RunConfig, num_processes: int) -> Iterator[int]:
    """Larger numbers of micro-batches that divide a process's share of the batch."""
    rows = config.training.batch_size // num_processes
    return (number for number in range(config.training.accumulation + 1, rows + 1) if rows % number == 0)


def _as_settings(changes: Changes) -> tuple[str, ...]:
    def text(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    return tuple(f"{section}.{name}={text(value)}" for section, of in changes.items() for name, value in of.items())
