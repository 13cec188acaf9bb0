"""The training step: rows and their draws, losses, one backward pass, the update; means over the global batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar, final

import torch
from torch import Tensor

from freeflow_core.config import RunConfig
from freeflow_core.engine.build import DTYPES, Components
from freeflow_core.engine.checks import watched
from freeflow_core.engine.optimizer import Copies, ema_decay, learning_rate
from freeflow_core.engine.process import autocast, from_each, machine_usage, memory_in_use
from freeflow_core.engine.state import STUDENT, TrainingState
from freeflow_core.errors import ConfigError, NonFiniteError, PluginError
from freeflow_core.interfaces import Context, Models, ObjectiveInParts, ObjectiveInRounds
from freeflow_core.math.random import Lookahead, PhiloxDraws
from freeflow_core.types import Batch, Draws, Loss, Losses, Progress, describe

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one global batch that one process handles in one pass."""

    batch: Batch
    draws: Draws


@final
class Trainer:
    """Takes steps. What happens between steps (logging, checkpoints, pictures) is the run's business.

    Raises:
        ConfigError: a batch that cannot be split evenly over processes and micro-batches.
    """

    def __init__(
        self, config: RunConfig, components: Components, state: TrainingState, accelerator: Accelerator
    ) -> None:
        self.config = config
        self.components = components
        self.state = state
        self.accelerator = accelerator
        self.meter = Meter(accelerator)
        self._models: Models = state.models(components)
        self._rounds = components.objective if isinstance(components.objective, ObjectiveInRounds) else None
        self._trails = {
            name: Copies.of(role.network, state.roles[role.follows].network, role.sharding)
            for name, role in state.roles.items()
            if role.follows is not None
        }
        self._autocast = autocast(accelerator.device, config.runtime.precision)
        parts = accelerator.num_processes * config.training.accumulation
        if config.training.batch_size % parts:
            raise ConfigError(
                f"training.batch_size={config.training.batch_size} cannot be split evenly over "
                f"{accelerator.num_processes} processes x {config.training.accumulation} micro-batches. "
                f"Choose a multiple of {parts}."
            )
        self._rows = config.training.batch_size // parts
        self._stream = self._open_stream(state.images)
        self._last_read = time.perf_counter()
        self._images_at_read = state.images
        self._intact = torch.ones((), dtype=torch.bool, device=accelerator.device)

    @property
    def progress(self) -> Progress:
        updates = {name: role.updates for name, role in self.state.roles.items()}
        return Progress(self.state.images, self.state.step, self.config.training.images, updates)

    def peek(self) -> MicroBatch:
        """The first rows of the next step, without taking it."""
        return next(self._open_stream(self.state.images))

    def step(self) -> None:
        """One optimizer step of every role that has a loss. No host sync."""
        progress = self.progress
        if self._rounds is not None:
            self.state.apply(self._rounds.transitions(progress))
        micro_batches = [next(self._stream) for _ in range(self.config.training.accumulation)]
        metrics: dict[str, Tensor] = {}
        for losses in self._losses(micro_batches, progress):
            total = torch.stack([loss.share * loss.per_sample.mean() for loss in losses.values()]).sum()
            self.accelerator.backward(total / len(micro_batches))
            _collect(metrics, losses, 1 / len(micro_batches))
        self._update([name for name in self.state.roles if f"{name}/loss" in metrics], metrics, progress)
        self.state.images += self.config.training.batch_size
        self.state.step += 1

    def read_metrics(self) -> dict[str, float]:
        """Means since the last reading, with speed and memory. The host sync of training.

        Raises:
            NonFiniteError: a step since the last reading was not finite; it was skipped on the device.
        """
        means, skipped = self.meter.read()
        if skipped:
            bad = [name for name, value in means.items() if not math.isfinite(value)]
            first = self.state.images - skipped * self.config.training.batch_size
            raise NonFiniteError(
                f"The training step at image {first:,} produced NaN or infinity in "
                f"{', '.join(bad) or 'the gradients'}; {self._first_not_finite(first, bad)}. The weights were not "
                "touched by it, and neither any step nor a checkpoint followed. If it was a passing fault, --resume "
                "goes on from the last checkpoint; if not, start anew with a lower training.optimizer.learning_rate, "
                "with training.optimizer.clip_norm, or with runtime.precision=float32."
            )
        elapsed = max(time.perf_counter() - self._last_read, 1e-9)
        means["images_per_second"] = (self.state.images - self._images_at_read) / elapsed
        means["memory_gib"] = memory_in_use(self.accelerator.device) / 2**30
        means |= machine_usage(self.accelerator.device)
        means["learning_rate"] = learning_rate(self.config.training.optimizer, *self._schedule(self.progress))
        self.restart_clock()
        return means

    def _first_not_finite(self, images: int, bad: Sequence[str]) -> str:
        """What it was, by taking the losses of the step at ``images`` again, from the weights it was taken from."""
        stream, progress = self._open_stream(images), replace(self.progress, images=images)
        micro_batches = [next(stream) for _ in range(self.config.training.accumulation)]
        networks = {name: role.network for name, role in self.state.roles.items()}
        with watched(self.components.teacher, networks) as found:
            for losses in self._losses(micro_batches, progress):
                for name, loss in losses.items():
                    if not bool(torch.isfinite(loss.per_sample).all()):
                        found.append(f"the loss of {name}")
        first = next(iter(from_each(self.accelerator, found)), None)
        if first is not None:
            return f"the first to give it was {first}"
        if all(name.endswith("gradient_norm") for name in bad):
            return "the losses are finite, their gradients are not"
        return "the same step taken again gives numbers, so that it was a passing fault, of the machine perhaps"

    def restart_clock(self) -> None:
        """Leave pictures and evaluations out of the images per second."""
        self._last_read, self._images_at_read = time.perf_counter(), self.state.images

    def _losses(self, micro_batches: Sequence[MicroBatch], progress: Progress) -> Iterator[Losses]:
        """All losses of a step, pass by pass; each is to go backward before the next is asked for.

        Means over the batch are known when all micro-batches have been here once. What needs them passes again:
        everything, or what an objective in parts has left.
        """
        objective, last = self.components.objective, len(micro_batches) - 1
        asked = [(self._models, micro.batch, micro.draws, progress) for micro in micro_batches]
        if last == 0 or not objective.uses_batch_means:
            for number, each in enumerate(asked):
                with self._synchronised(last=number == last):
                    yield self._checked(self._guarded(partial(objective.losses, *each, GlobalMeans(self.accelerator))))
            return
        noted = [LocalMeans() for _ in asked]
        rests: list[Callable[[Context], Losses]] = []
        for number, (each, means) in enumerate(zip(asked, noted, strict=True)):
            if isinstance(objective, ObjectiveInParts):
                with self._synchronised(last=number == last, but=STUDENT):
                    losses, rest = self._guarded(partial(objective.early_losses, *each, means))
                    rests.append(rest)
                    yield self._checked(losses)
            else:
                with torch.no_grad():
                    self._checked(self._guarded(partial(objective.losses, *each, means)))
                rests.append(partial(objective.losses, *each))
        known = self._over_the_batch(noted)
        for number, rest in enumerate(rests):
            with self._synchronised(last=number == last):
                yield self._checked(self._guarded(partial(rest, GlobalMeans(self.accelerator, known))))

    def _guarded(self, ask: Callable[[], T]) -> T:
        """What a function of the objective returns, in the run's precision."""
        with self._autocast:
            try:
                return ask()
            except PluginError as error:
                raise PluginError(f"The objective {self.config.objective.name!r}: {error}") from error

    def _checked(self, losses: Losses) -> Losses:
        check_losses(self.config.objective.name, losses, self.state, self._rows)
        return losses

    def _update(self, trained: Sequence[str], metrics: dict[str, Tensor], progress: Progress) -> None:
        """Optimizers and averages of the roles that had a loss, unless a number is not finite: then nothing moves."""
        training, roles = self.config.training, self.state.roles
        total = reduce_mean(self.accelerator, torch.stack([metrics[f"{name}/loss"] for name in trained]))
        images, span = self._schedule(progress)
        optimizers = {name: optimizer for name in trained if (optimizer := roles[name].optimizer) is not None}
        norms = {name: optimizer.gradient_norm() for name, optimizer in optimizers.items()}
        finite = torch.isfinite(torch.stack([*norms.values()])).all() & torch.isfinite(total).all() & self._intact
        self._intact = finite  # after the first bad step nothing moves, so that it can be taken again to see why
        skip = (~finite).float()
        size, ema = training.batch_size, training.ema
        decay = ema_decay(progress.images + size, size, ema.halflife_images, ema.rampup_ratio)
        for name, optimizer in optimizers.items():
            role, norm = roles[name], norms[name]
            optimizer.step(learning_rate(optimizer.config, images, span), norm, skip)
            role.updates += 1
            if role.ema is not None:
                role.averages.follow(((1 - decay) * finite).to(norm.dtype))
            metrics[f"{name}/gradient_norm"] = norm
        for name, copies in self._trails.items():
            if roles[name].follows in optimizers:
                halflife = roles[name].follow_halflife_images
                decay = 0.0 if halflife is None else 0.5 ** (training.batch_size / halflife)
                copies.follow((1 - decay) * finite)
        self.meter.add(metrics, skip)

    def _schedule(self, progress: Progress) -> tuple[int, int]:
        """Images done and in all, of the whole run, or of a round of an objective that has rounds."""
        first, last = (0, progress.total_images) if self._rounds is None else self._rounds.schedule_span(progress)
        return progress.images - first, last - first

    def _over_the_batch(self, noted: Sequence[LocalMeans]) -> list[Tensor]:
        """Means over all micro-batches and processes, in the order they were asked for."""
        asked = noted[0].means
        local = torch.stack([torch.cat([mean.flatten() for mean in context.means]) for context in noted]).mean(0)
        parts = torch.split(reduce_mean(self.accelerator, local), [mean.numel() for mean in asked])
        return [part.view_as(mean) for part, mean in zip(parts, asked, strict=True)]

    def _synchronised(self, *, last: bool, but: str | None = None) -> ExitStack:
        """Gradients travel between processes with the last pass only; those of the role ``but`` not even then."""
        stack = ExitStack()
        for name, role in self.state.roles.items():
            if role.optimizer is not None and (not last or name == but):
                stack.enter_context(self.accelerator.no_sync(role.wrapped))
        return stack

    def _open_stream(self, first: int) -> Iterator[MicroBatch]:
        """This process's micro-batches from the image ``first`` on; a function of that number alone."""
        rank, world, device = self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device
        size, rows, dtype = self.config.training.batch_size, self._rows, DTYPES[self.config.runtime.precision]
        source, teacher = self.components.source, self.components.teacher
        data = source.batches(first, rows, rank, world) if source.has_data else None
        lookahead = Lookahead(size)
        while True:
            for micro in range(self.config.training.accumulation):
                position = torch.arange(rows) + (micro * world + rank) * rows
                draws = PhiloxDraws(
                    self.config.seed,
                    first + position,
                    position=position,
                    batch_size=size,
                    device=device,
                    dtype=dtype,
                    lookahead=lookahead,
                )
                if data is not None:
                    yield MicroBatch(self._encoded(next(data), dtype), draws)
                else:
                    condition = teacher.sample_condition(draws) if teacher is not None else None
                    yield MicroBatch(Batch(None, condition), draws)
            first += size

    def _encoded(self, batch: Batch, dtype: torch.dtype) -> Batch:
        source, expected = self.config.source.name, tuple(self.components.student.sample_shape)
        if batch.x is None:
            raise PluginError(f"The source {source!r} yielded a batch without data.")
        x = batch.x.to(self.accelerator.device)
        if self.components.source.encoded_by is None:
            x = self.components.codec.encode(x)
        if tuple(x.shape[1:]) != expected:
            raise ConfigError(
                f"The source {source!r} yields states of shape {tuple(x.shape[1:])} (through the codec "
                f"{self.config.codec.name!r}), but the student {self.config.student.name!r} works on {expected}. "
                "Choose another source or codec, or set the student's sample_shape."
            )
        return Batch(x.to(dtype), batch.condition)


def _collect(metrics: dict[str, Tensor], losses: Losses, share: float) -> None:
    for role, loss in losses.items():
        mean = loss.per_sample.detach().mean()
        terms = {f"{role}/loss": mean if loss.share == 1 else loss.share * mean}
        terms |= {f"{role}/{name}": value for name, value in loss.terms.items()}
        for name, value in terms.items():
            part = value if share == 1 else share * value
            metrics[name] = metrics[name] + part if name in metrics else part


@final
class LocalMeans(Context):
    """Notes means over a micro-batch, in the order they are asked for."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []

    def mean(self, values: Tensor) -> Tensor:
        self.means.append(values.detach().mean(0))
        return self.means[-1]


@final
class GlobalMeans(Context):
    """Means over processes; with several micro-batches those ``known`` of all, in the same order."""

    def __init__(self, accelerator: Accelerator, known: Iterable[Tensor] | None = None) -> None:
        self._accelerator, self._known = accelerator, None if known is None else iter(known)

    def mean(self, values: Tensor) -> Tensor:
        return reduce_mean(self._accelerator, values.detach().mean(0)) if self._known is None else next(self._known)


def check_losses(objective: str, losses: Mapping[str, Loss], state: TrainingState, rows: int) -> None:
    """Names, types and shapes of what ``losses`` returned; nothing is read from the device.

    Args:
        rows: of the micro-batch.

    Raises:
        PluginError: a loss that cannot be trained on.
    """
    trainable = [name for name, role in state.roles.items() if role.optimizer is not None]
    returned = f"The objective {objective!r} returned"
    if not isinstance(losses, Mapping):
        raise PluginError(f"{returned} {describe(losses)}; expected one Loss a role, such as {{'student': ...}}.")
    if not losses:
        raise PluginError(f"{returned} no loss; expected one for {STUDENT!r} or a role.")
    for role, loss in losses.items():
        if role not in trainable:
            frozen = ", for it is frozen" if role in state.roles else ""
            raise PluginError(
                f"{returned} a loss for {role!r}, which is not a trainable role{frozen}. Trainable: "
                f"{', '.join(trainable)}. Name the role in roles(), with trainable=True."
            )
        if not isinstance(loss, Loss) or not isinstance(loss.per_sample, Tensor):
            came = loss.per_sample if isinstance(loss, Loss) else loss
            raise PluginError(
                f"{returned} {describe(came)} for {role!r}; expected a freeflow_core.types.Loss whose per_sample is "
                f"a tensor of one value per sample, ({rows},)."
            )
        value = loss.per_sample
        if value.ndim != 1 or (role == STUDENT and loss.share == 1 and len(value) == 1 < rows):
            raise PluginError(
                f"{returned} a {role!r} loss of shape {tuple(value.shape)}; expected one value per sample, ({rows},), "
                "not a mean over the batch. Average over the dimensions of each sample alone, as "
                "freeflow_core.math.flow.mean_square does."
            )
        if torch.is_grad_enabled() and not value.requires_grad:
            raise PluginError(
                f"{returned} a {role!r} loss without gradient; expected one that reaches the weights of {role!r}. Pass "
                f"through models[{role!r}].wrapped, outside of torch.no_grad, and do not detach the result."
            )


def reduce_mean(accelerator: Accelerator, value: Tensor) -> Tensor:
    """Mean of a tensor over processes."""
    reduced: Tensor = value if accelerator.num_processes == 1 else accelerator.reduce(value, reduction="mean")
    return reduced


@final
class Meter:
    """Means of metrics by name, and the count of skipped steps, gathered on the device.

    Steps with the same names share one vector of sums, so that a step costs one stack and one sum.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._counts: dict[tuple[str, ...], int] = {}

    @property
    def pending(self) -> bool:
        return bool(self._counts)

    def add(self, values: Mapping[str, Tensor], skipped: Tensor) -> None:
        """One step's scalars, all 0-d on the device. ``skipped`` is 1 when the step was not applied."""
        stacked = torch.stack([skipped, *values.values()]).detach().float()
        names = tuple(values)
        if names in self._sums:
            self._sums[names] += stacked
            self._counts[names] += 1
        else:
            self._sums[names], self._counts[names] = stacked, 1

    def read(self) -> tuple[dict[str, float], int]:
        """Means since the last reading, over all processes, and the number of steps skipped. Then start anew."""
        if not self.pending:
            return {}, 0
        groups = list(self._sums)
        values = iter(reduce_mean(self._accelerator, torch.cat([self._sums[group] for group in groups])).tolist())
        totals: dict[str, float] = {}
        counts: dict[str, int] = {}
        skipped = 0.0
        for group in groups:
            skipped += next(values)
            for name in group:
                totals[name] = totals.get(name, 0.0) + next(values)
                counts[name] = counts.get(name, 0) + self._counts[group]
        self._sums, self._counts = {}, {}
        return {name: total / counts[name] for name, total in sorted(totals.items())}, round(skipped)
