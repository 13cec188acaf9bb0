"""How long each objective trains: its cost, measured once, and what the budget buys at that cost."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from freeflow_core.config import RunConfig
from freeflow_core.config.compare import Budget
from freeflow_core.errors import ConfigError
from freeflow_core.plugin import Registry
from freeflow_core.tools.compare.budget import images_for
from freeflow_core.tools.compare.cost import measure_cost
from freeflow_core.tools.compare.failures import describe, disk_is_full
from freeflow_core.tools.compare.manifest import Manifest
from freeflow_core.tools.compare.variants import Variant

_log = logging.getLogger("freeflow")


def fix_lengths(manifest: Manifest, variants: Sequence[Variant], budget: Budget | None, registry: Registry) -> None:
    """Fill in what the manifest does not know yet. It is kept there: a second start must train the same runs.

    Raises:
        ConfigError: a run that cannot be built, or a budget too small for one step.
        Exception: whatever a full disk raised; other failures are recorded.
    """
    speed = budget is not None and budget.kind == "seconds"
    known = {
        _cost_key(variant.config, speed): cost
        for variant in variants
        if (cost := manifest.records[variant.name].cost) is not None
    }
    for variant in variants:
        record = manifest.records[variant.name]
        if record.images is not None:
            continue
        try:
            key = _cost_key(variant.config, speed)
            if key not in known:
                _log.info("Measuring what a step of %s costs.", variant.name)
                known[key] = measure_cost(variant.config, registry, speed=speed)
            record.cost, record.error = known[key], None
            record.images = images_for(budget, variant.config, known[key])
        except ConfigError as error:
            raise ConfigError(f"In the runs of {variant.name}: {error}") from error
        except Exception as error:
            if disk_is_full(error):
                raise
            record.error = describe(error)
            _log.warning("The cost of %s cannot be measured: %s", variant.name, record.error)


def _cost_key(config: RunConfig, speed: bool) -> str:
    """What a step's cost depends on; with its speed, the source too."""
    parts = {"teacher", "student", "objective", "codec", "runtime"} | ({"source"} if speed else set())
    size = config.training.batch_size, config.training.accumulation
    return f"{size} {config.model_dump_json(include=parts)}"
