"""What a run that ran out of memory is told: what it needs, and settings with which it fits."""

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import torch

from freeflow_core.config import RunConfig
from freeflow_core.engine.process import launched_processes, planned_device_type
from freeflow_core.errors import FreeflowError, is_out_of_memory
from freeflow_core.plugin import Registry
from freeflow_core.tools.cost.estimate import changed
from freeflow_core.tools.cost.plan import USABLE, make_plan
from freeflow_core.tools.cost.proposal import propose
from freeflow_core.tools.cost.rate import Rate, RateFrom

_GIB = 2**30
_FAR = 100
"""Times the device's memory from which on no settings are looked for."""
_LESS = 0.8
"""Share of its planned memory to aim at for a run that ought to have fitted."""


@contextmanager
def memory_told(config: RunConfig, registry: Registry) -> Iterator[None]:
    """Have what ran out of memory inside end with the plan's proposal; all else passes as it is.

    Lets go of what the failed run's frames still hold.

    Raises:
        FreeflowError: it did.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, FreeflowError) or not is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        advice = "Lower training.batch_size, raise training.accumulation, or take smaller networks."
        with suppress(Exception):  # what is told is the shortage, whatever becomes of the plan
            advice = _advice(config, registry)
        raise FreeflowError(
            f"There is not enough memory{f' ({text[:160]})' if text else ''}. {advice} If it ran short while it was "
            "scored or made pictures, lower evaluation.batch_size."
        ) from error


def _advice(config: RunConfig, registry: Registry) -> str:
    device = planned_device_type(config.runtime)
    config = changed(config, runtime={"device": device})
    size = torch.cuda.mem_get_info()[1] if device == "cuda" else psutil.virtual_memory().total
    processes, rate = launched_processes(), Rate(1e12, RateFrom.GIVEN)
    plan = make_plan(config, registry, processes, device_memory=size, rate=rate)
    needs = f"By plan each process of this run needs {plan.total / _GIB:.1f} GiB, of {size / _GIB:.1f} GiB there are"
    if plan.fits:
        needs += ", so that something else holds the rest"
        plan = make_plan(config, registry, processes, device_memory=int(_LESS * plan.total / USABLE), rate=rate)
    if plan.total > _FAR * size:
        return f"{needs}. Lower training.batch_size={config.training.batch_size:,}, or take smaller networks."
    found = propose(config, plan, registry)
    if found is None:
        return (
            f"{needs}. No micro-batches or recomputed activations make it fit. Less room: "
            "training.optimizer.moments=8bit, smaller networks, more devices."
        )
    settings = " ".join(f"--set {setting}" for setting in found.settings)
    return (
        f"{needs}. {found.plan.total / _GIB:.1f} GiB do with {settings} in addition; a run that has a checkpoint goes "
        "on with --resume."
    )
