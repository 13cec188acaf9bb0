"""How many images a budget buys an objective, and the run of that length."""

from __future__ import annotations

from freeflow_core.config import RunConfig
from freeflow_core.config.compare import Budget
from freeflow_core.errors import ConfigError
from freeflow_core.tools.compare.cost import Cost


def images_for(budget: Budget | None, run: RunConfig, cost: Cost) -> int:
    """Training images within ``budget``, in whole batches where it is of forwards or seconds.

    ``forwards``: amount / forwards per image. ``seconds``: amount x images per second, as measured before the first
    run, so that a resumed run, and every seed, has the same length.

    Raises:
        ConfigError: a budget that does not buy a single step.
    """
    batch = run.training.batch_size
    if budget is None:
        return run.training.images
    if budget.kind == "images":
        images, each = round(budget.amount), "1 image an image"
    elif budget.kind == "forwards":
        images = int(budget.amount / cost.forwards_per_image) // batch * batch
        each = f"{cost.forwards_per_image:.4g} forwards an image"
    else:
        images = int(budget.amount * cost.images_per_second) // batch * batch
        each = f"{cost.images_per_second:.4g} images a second"
    if images < 1:
        raise ConfigError(
            f"The budget {budget} does not buy one step of {run.objective.name}: {batch} images a step, {each}. "
            "Raise --budget, or lower training.batch_size."
        )
    return images


def with_length(run: RunConfig, images: int) -> RunConfig:
    """The run over ``images``; warm-up, decay and the average's half-life keep their shares of it."""
    training = run.training
    factor = images / training.images

    def scaled(duration: int) -> int:
        return max(1, round(duration * factor)) if duration else 0

    optimizer, ema = training.optimizer, training.ema
    decay = optimizer.decay_images
    changes = {
        "images": images,
        "optimizer": optimizer.model_copy(
            update={
                "warmup_images": scaled(optimizer.warmup_images),
                "decay_images": None if decay is None else scaled(decay),
            }
        ),
        "ema": ema.model_copy(update={"halflife_images": scaled(ema.halflife_images)}),
    }
    return run.model_copy(update={"training": training.model_copy(update=changes)})
