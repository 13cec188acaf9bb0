"""What a step of an objective costs, measured on real steps that are thrown away."""

from __future__ import annotations

import gc
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from freeflow_core.config import RunConfig
from freeflow_core.engine.build import Builder, Components, build_components
from freeflow_core.engine.device import planned_device_type, start_accelerator
from freeflow_core.engine.state import STUDENT, TrainingState, build_state
from freeflow_core.engine.trainer import Trainer
from freeflow_core.plugin import Registry
from freeflow_core.tools.compare.passes import Count, Rows, counted_rows
from freeflow_core.tools.cost.process import PlannedProcess
from freeflow_core.tools.cost.step import measure_step

_log = logging.getLogger(__name__)
_MOST_STEPS = 60  # the least common multiple of 1 to 6: whole cycles of all usual update ratios
_NEGLIGIBLE = 0.01
_SECONDS = 2.0
_WARM_STEPS, _FEWEST_STEPS, _MOST_TIMED = 2, 5, 500


@dataclass(frozen=True)
class Cost:
    """Of one objective.

    Args:
        forwards_per_image: all networks' passes of a step, in forward passes of one row, over the batch.
        rows: rows through each network, per image of the batch. Every network counts the same, whatever its size, but
            those with less than 1 % of the student's weights are left out.
        peak_memory: bytes at most in a training step: of a GPU, what torch had allocated; elsewhere, of all tensors.
        images_per_second: of training steps alone; 0 when it was not measured.
    """

    forwards_per_image: float
    rows: Mapping[str, Rows]
    peak_memory: int | None
    images_per_second: float = 0.0


def measure_cost(config: RunConfig, registry: Registry, *, speed: bool) -> Cost:
    """Build what a run would, take a few steps, and forget it all.

    Steps are counted until their pattern repeats, with an update of every network in it (an objective may update them
    in turn), at most 60 of them; where rows are drawn at random, all 60.

    Args:
        speed: measure images per second too, compiled if the run is to be.

    Raises:
        ConfigError: whatever the run itself would refuse.
    """
    plain = config.model_copy(update={"runtime": config.runtime.model_copy(update={"compile": False})})
    held = _Rehearsal(plain, registry).bytes_held() if planned_device_type(config.runtime) != "cuda" else None
    rehearsal = _Rehearsal(plain, registry)
    rows = rehearsal.count()
    peak = rehearsal.bytes_allocated() if held is None else held
    per_second = 0.0
    if speed:
        per_second = (_Rehearsal(config, registry) if config.runtime.compile else rehearsal).images_per_second()
    del rehearsal
    _free()
    return Cost(sum(part.forwards for part in rows.values()), rows, peak, per_second)


@final
class _Rehearsal:
    """A trainer over parts of its own."""

    def __init__(self, config: RunConfig, registry: Registry) -> None:
        self._config = config
        self._accelerator = start_accelerator(config.runtime)
        self._device = self._accelerator.device
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        builder = Builder(registry, self._device, config.seed, config.runtime.precision)
        self._components: Components = build_components(builder, config)
        self._state: TrainingState = build_state(config, self._components, self._accelerator)
        self._trainer = Trainer(config, self._components, self._state, self._accelerator)

    def bytes_held(self) -> int | None:
        """Of all tensors at most, in a step; it leaves the parts unfit for more. None where they cannot be followed."""
        try:
            return measure_step(self._config, self._components, self._state, PlannedProcess(1, self._device)).peak
        except Exception:  # a step that fails will do so again where it is counted
            _log.debug("the memory of a step cannot be measured", exc_info=True)
            return None

    def bytes_allocated(self) -> int | None:
        """On a GPU, by the steps taken so far."""
        return int(torch.cuda.max_memory_allocated(self._device)) if self._device.type == "cuda" else None

    def count(self) -> Count:
        """Rows through each network per image."""
        networks = self._networks()
        trained = {name: role for name, role in self._state.roles.items() if role.optimizer is not None}
        steps: list[Count] = []
        updated: list[frozenset[str]] = []
        with counted_rows(networks, self._components.teacher) as count:
            for _ in range(_MOST_STEPS):
                count.clear()
                before = {name: role.updates for name, role in trained.items()}
                self._trainer.step()
                steps.append(dict(count))
                updated.append(frozenset(name for name, role in trained.items() if role.updates > before[name]))
                if (period := repeating(steps, updated, frozenset(trained))) is not None:
                    steps = steps[-period:]
                    break
        images = self._config.training.batch_size * len(steps)
        total: Count = {}
        for step in steps:
            for name, rows in step.items():
                total[name] = total.get(name, Rows()) + rows
        return {name: rows / images for name, rows in total.items()}

    def _networks(self) -> dict[str, nn.Module]:
        """Roles and their averages; a learned weighting of a few numbers costs nothing beside the student."""
        least = _NEGLIGIBLE * _size(self._state.roles[STUDENT].network)
        networks: dict[str, nn.Module] = {}
        for name, role in self._state.roles.items():
            if _size(role.network) >= least:
                networks[name] = role.network
                if role.ema is not None:
                    networks[f"{name} average"] = role.ema
        return networks

    def images_per_second(self) -> float:
        """Over two seconds at least, after the steps that load and compile."""
        for _ in range(_WARM_STEPS):
            self._trainer.step()
        self._synchronize()
        began = time.perf_counter()
        for steps in itertools.count(1):
            self._trainer.step()
            self._synchronize()
            elapsed = time.perf_counter() - began
            if (steps >= _FEWEST_STEPS and elapsed >= _SECONDS) or steps == _MOST_TIMED:
                break
        return self._config.training.batch_size * steps / elapsed

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def repeating(steps: Sequence[Any], updated: Sequence[frozenset[str]], trained: frozenset[str]) -> int | None:
    """The shortest period with which the end of ``steps`` repeats, seen three times; None while there is none.

    Args:
        steps: what each step did.
        updated: the networks that each step updated.
        trained: networks that a period must update, each at least once: several critic steps in a row are no period.
    """
    for period in range(1, len(steps) // 3 + 1):
        last = steps[-period:]
        again = steps[-2 * period : -period] == last and steps[-3 * period : -2 * period] == last
        if again and trained <= frozenset().union(*updated[-period:]):
            return period
    return None


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
