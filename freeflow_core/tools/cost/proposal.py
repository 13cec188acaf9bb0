"""Settings that make a run fit its device, found by planning: the ones that cost the fewest operations."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from freeflow_core.config import RunConfig
from freeflow_core.errors import ConfigError
from freeflow_core.plugin import Registry
from freeflow_core.tools.cost.estimate import changed
from freeflow_core.tools.cost.plan import Plan, make_plan

_MOST = 10**6
"""Numbers of rows or micro-batches that are tried as divisors of a larger batch."""
_TRIES = 4


@dataclass(frozen=True)
class Proposal:
    """``settings`` as ``a.b=c``, with which a run fits, and its ``plan`` with them."""

    settings: tuple[str, ...]
    plan: Plan


def propose(config: RunConfig, plan: Plan, registry: Registry) -> Proposal | None:
    """The first that fits of: micro-batches, recomputed activations, both, and then these with divided networks, and
    with moments in the host's memory.

    Micro-batches come before recomputed activations unless they pass all rows twice. None where nothing fits.

    Args:
        plan: of ``config``.
    """
    if plan.available is None:
        return None
    search = _Search(config, plan, plan.available, registry)
    ways: list[dict[str, Any]] = [{}]
    if plan.num_processes > 1 and config.runtime.sharding == "none":
        ways.append({"sharding": "full"})
    if plan.device == "cuda" and not config.runtime.offload_optimizer:
        ways += [{**way, "offload_optimizer": True} for way in ways]
    return next((found for way in ways if (found := search.over(way)) is not None), None)


@final
class _Search:
    """Plans what it tries, each once."""

    def __init__(self, config: RunConfig, plan: Plan, usable: int, registry: Registry) -> None:
        self._config, self._plan, self._usable, self._registry = config, plan, usable, registry
        self._planned: dict[str, Plan | None] = {"": plan}

    def over(self, runtime: Mapping[str, Any]) -> Proposal | None:
        """The first that fits, beside settings of the runtime that are given."""
        whole = self._try(runtime, 1)
        if whole is None or whole.total - whole.activations > self._usable:
            return None  # then nothing that is done about activations helps
        recomputed = {**runtime, "activation_checkpointing": True}
        ways: list[Callable[[], Proposal | None]] = [
            lambda: self._fitting(runtime),
            lambda: self._micro_batches(runtime),
        ]
        if not self._config.runtime.activation_checkpointing:
            ways.insert(1 if self._plan.twice_with_micro_batches else 2, lambda: self._fitting(recomputed))
            ways.append(lambda: self._micro_batches(recomputed))
        return next((found for way in ways if (found := way()) is not None), None)

    def _fitting(self, runtime: Mapping[str, Any], times: int = 1) -> Proposal | None:
        found = self._try(runtime, times)
        if found is None or found.total > self._usable:
            return None
        return Proposal(tuple(self._settings(runtime, times)), found)

    def _micro_batches(self, runtime: Mapping[str, Any]) -> Proposal | None:
        known = self._try(runtime, 1)
        if known is None or (spare := self._usable - known.total + known.activations) <= 0:
            return None
        # As many as it takes if all activations grew with the rows; some do not, so that it may take more.
        fewest = known.activations / spare
        rows = known.rows
        small = [times for times in range(1, min(math.isqrt(rows), _MOST) + 1) if rows % times == 0]
        divisors = sorted({*small, *(rows // times for times in small)} - {1})
        enough = [times for times in divisors if times >= 0.8 * fewest]
        tries = (self._fitting(runtime, times) for times in enough[:_TRIES])
        return next((found for found in tries if found is not None), None)

    def _try(self, runtime: Mapping[str, Any], times: int) -> Plan | None:
        """With ``times`` as many micro-batches; None where the run would refuse it."""
        key = " ".join(self._settings(runtime, times))
        if key not in self._planned:
            plan, accumulation = self._plan, self._config.training.accumulation * times
            other = changed(self._config, runtime=runtime, training={"accumulation": accumulation})
            try:
                self._planned[key] = make_plan(
                    other,
                    self._registry,
                    plan.num_processes,
                    device_memory=plan.device_memory,
                    rate=plan.rate,
                    free=plan.free,
                )
            except ConfigError:  # a student that cannot recompute, or a batch that cannot be split like this
                self._planned[key] = None
        return self._planned[key]

    def _settings(self, runtime: Mapping[str, Any], times: int) -> Iterator[str]:
        for name, value in runtime.items():
            yield f"runtime.{name}={str(value).lower()}"
        if times > 1:
            yield f"training.accumulation={self._config.training.accumulation * times}"
