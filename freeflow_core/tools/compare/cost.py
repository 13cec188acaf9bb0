"""What a step of an objective costs, measured on steps that are thrown away, and what a budget buys at that cost."""

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from freeflow_core.config import ComponentConfig, RunConfig
from freeflow_core.config.compare import Budget
from freeflow_core.engine.build import Builder, build_components
from freeflow_core.engine.process import planned_device_type, start_accelerator
from freeflow_core.engine.state import STUDENT, build_state
from freeflow_core.engine.trainer import Trainer
from freeflow_core.errors import ConfigError
from freeflow_core.plugin import Registry
from freeflow_core.tools.cost.step import Count, PlannedProcess, Rows, counted_rows, measure_step

_log = logging.getLogger("freeflow")
_MOST_STEPS = 60  # the least common multiple of 1 to 6: whole cycles of all usual update ratios
_NEGLIGIBLE = 0.01


@final
@dataclass(frozen=True)
class Cost:
    """Of one objective.

    Args:
        forwards_per_image: all networks' passes of a step, in forward passes of one row, over the batch.
        rows: rows through each network, per image of the batch. Every network counts the same, whatever its size, but
            those with less than 1 % of the student's weights are left out.
        peak_memory: bytes at most in a training step: of a GPU, what torch had allocated; elsewhere, of all tensors.
    """

    forwards_per_image: float
    rows: Mapping[str, Rows]
    peak_memory: int | None


def images_for(budget: Budget | None, run: RunConfig, cost: Cost) -> int:
    """Training images within ``budget``: of forwards, amount / forwards per image, in whole batches.

    Raises:
        ConfigError: a budget that does not buy a single step.
    """
    if budget is None:
        return run.training.images
    batch, images = run.training.batch_size, round(budget.amount)
    if budget.kind == "forwards":
        images = int(budget.amount / cost.forwards_per_image) // batch * batch
    if images < 1:
        raise ConfigError(
            f"The budget {budget} does not buy one step of {run.objective.name}: {batch} images a step, "
            f"{cost.forwards_per_image:.4g} forwards an image. Raise --budget, or lower training.batch_size."
        )
    return images


def with_length(run: RunConfig, images: int) -> RunConfig:
    """The run over ``images``: warm-up, decay, the average's half-life, the interval of scores during training and the
    objective's own durations (options that end in ``_images``) keep their shares of it."""
    training, options = run.training, run.objective.options

    def scaled(section: Any, *durations: str) -> Any:
        def share(duration: Any) -> Any:
            if isinstance(duration, tuple):
                return tuple(share(part) for part in duration)
            return max(1, round(duration * images / training.images)) if duration else duration

        return section.model_copy(update={name: share(getattr(section, name)) for name in durations})

    optimizer = scaled(training.optimizer, "warmup_images", "decay_images")
    ema = scaled(training.ema, "halflife_images")
    changes = {
        "training": training.model_copy(update={"images": images, "optimizer": optimizer, "ema": ema}),
        "evaluation": scaled(run.evaluation, "every_images"),
    }
    if isinstance(options, ComponentConfig):
        own = scaled(options, *(name for name in type(options).model_fields if name.endswith("_images")))
        changes["objective"] = run.objective.model_copy(update={"options": own})
    return run.model_copy(update=changes)


def measure_cost(config: RunConfig, registry: Registry) -> Cost:
    """Build what a run would, take a few steps, and forget it all.

    Steps are counted until their pattern repeats, with an update of every network in it (an objective may update them
    in turn), at most 60 of them; where rows are drawn at random, all 60.

    Raises:
        ConfigError: whatever the run itself would refuse.
    """
    config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"compile": False})})
    on_gpu = planned_device_type(config.runtime) == "cuda"
    held = None if on_gpu else _Trial(config, registry).bytes_held()  # parts of its own: it leaves them unfit for more
    trial = _Trial(config, registry)
    rows = trial.count()
    peak = int(torch.cuda.max_memory_allocated(trial.device)) if on_gpu else held
    del trial
    free_memory()
    return Cost(sum(part.forwards for part in rows.values()), rows, peak)


@final
class _Trial:
    """A trainer over parts of its own."""

    def __init__(self, config: RunConfig, registry: Registry) -> None:
        self._config = config
        self._accelerator = start_accelerator(config.runtime)
        self.device = self._accelerator.device
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        builder = Builder(registry, self.device, config.seed, config.runtime.precision)
        self._components = build_components(builder, config)
        self._state = build_state(config, self._components, self._accelerator)

    def bytes_held(self) -> int | None:
        """Of all tensors at most, in a step. None where they cannot be followed."""
        try:
            return measure_step(self._config, self._components, self._state, PlannedProcess(1, self.device)).peak
        except Exception:  # a step that fails will do so again where it is counted
            _log.debug("the memory of a step cannot be measured", exc_info=True)
            return None

    def count(self) -> Count:
        trainer = Trainer(self._config, self._components, self._state, self._accelerator)
        trained = {name: role for name, role in self._state.roles.items() if role.optimizer is not None}
        steps: list[Count] = []
        updated: list[frozenset[str]] = []
        with counted_rows(self._networks(), self._components.teacher) as count:
            for _ in range(_MOST_STEPS):
                count.clear()
                before = {name: role.updates for name, role in trained.items()}
                trainer.step()
                steps.append(dict(count))
                updated.append(frozenset(name for name, role in trained.items() if role.updates > before[name]))
                if (period := repeating(steps, updated, frozenset(trained))) is not None:
                    steps = steps[-period:]
                    break
        images = self._config.training.batch_size * len(steps)
        names = dict.fromkeys(name for step in steps for name in step)
        return {name: sum((step.get(name, Rows()) for step in steps), Rows()) / images for name in names}

    def _networks(self) -> dict[str, nn.Module]:
        """Roles and their averages; a learned weighting of a few numbers costs nothing beside the student."""
        sizes = {name: sum(p.numel() for p in role.network.parameters()) for name, role in self._state.roles.items()}
        networks: dict[str, nn.Module] = {}
        for name, role in self._state.roles.items():
            if sizes[name] >= _NEGLIGIBLE * sizes[STUDENT]:
                networks[name] = role.network
                if role.ema is not None:
                    networks[f"{name} average"] = role.ema
        return networks


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


def free_memory() -> None:
    """Give back what dropped networks held, on the GPU too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def cost_key(config: RunConfig) -> str:
    """What a step's cost depends on."""
    size = config.training.batch_size, config.training.accumulation
    return f"{size} {config.model_dump_json(include={'teacher', 'student', 'objective', 'codec', 'runtime'})}"
