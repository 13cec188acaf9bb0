"""The training step and the loop around it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import final

import torch
from accelerate import Accelerator
from torch import Tensor

from freeflow_core.config import OptimizerConfig, RunConfig
from freeflow_core.engine.build import DTYPES, Components
from freeflow_core.engine.context import CollectingContext, ProcessContext, ReplayingContext, reduce_mean
from freeflow_core.engine.device import autocast, memory_in_use
from freeflow_core.engine.first_step import check_losses
from freeflow_core.engine.meter import Meter
from freeflow_core.engine.optimizer import ema_decay, learning_rate, update_average
from freeflow_core.engine.state import TrainingState
from freeflow_core.errors import ConfigError, NonFiniteError, PluginError
from freeflow_core.interfaces import Context, Models, ObjectiveInRounds, Transition
from freeflow_core.math.random import Lookahead, PhiloxDraws
from freeflow_core.types import Batch, Draws, Loss, Progress


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
        parts = accelerator.num_processes * config.training.accumulation
        if config.training.batch_size % parts:
            raise ConfigError(
                f"training.batch_size={config.training.batch_size} cannot be split evenly over "
                f"{accelerator.num_processes} processes x {config.training.accumulation} micro-batches. "
                f"Choose a multiple of {parts}."
            )
        self._rows = config.training.batch_size // parts
        self._stream = self._open_stream()
        self._last_read = time.perf_counter()
        self._images_at_read = state.images

    @property
    def progress(self) -> Progress:
        """Where training stands."""
        updates = {name: role.updates for name, role in self.state.roles.items()}
        return Progress(self.state.images, self.state.step, self.config.training.images, updates)

    def peek(self) -> MicroBatch:
        """The first rows of the next step, without taking it."""
        return next(self._open_stream())

    def step(self) -> None:
        """One optimizer step of every role that has a loss. No host sync."""
        if self._rounds is not None:
            self._apply_transitions(self._rounds.transitions(self.progress))
        progress = self.progress
        micro_batches = [next(self._stream) for _ in range(self.config.training.accumulation)]
        context = self._context(micro_batches, progress)
        metrics: dict[str, Tensor] = {}
        for number, micro in enumerate(micro_batches):
            if isinstance(context, ReplayingContext):
                context.rewind()
            with self._synchronised(last=number == len(micro_batches) - 1):
                losses = self._losses(micro, progress, context)
                total = torch.stack([loss.per_sample.mean() for loss in losses.values()]).sum() / len(micro_batches)
                self.accelerator.backward(total)
            _collect(metrics, losses, 1 / len(micro_batches))
        self._update(losses.keys(), metrics, progress)
        self.state.images += self.config.training.batch_size
        self.state.step += 1

    def read_metrics(self) -> dict[str, float]:
        """Means since the last reading, with speed and memory. The host sync of training.

        Raises:
            NonFiniteError: a step since the last reading was not finite; it was skipped on the device.
        """
        means, skipped = self.meter.read()
        if skipped:
            bad = [name for name, value in means.items() if not torch.isfinite(torch.tensor(value))]
            raise NonFiniteError(
                f"{skipped} training step(s) before image {self.state.images} produced NaN or infinity in "
                f"{', '.join(bad) or 'the gradients'}. The weights were not touched by them and no checkpoint was "
                "written after them. If it was a passing fault, --resume goes on from the last checkpoint; if not, "
                "start anew with a lower training.optimizer.learning_rate, with training.optimizer.clip_norm, or with "
                "runtime.precision=float32."
            )
        now = time.perf_counter()
        elapsed = max(now - self._last_read, 1e-9)
        means["images_per_second"] = (self.state.images - self._images_at_read) / elapsed
        means["memory_gib"] = memory_in_use(self.accelerator.device) / 2**30
        means["learning_rate"] = self._learning_rate(self.config.training.optimizer, self.progress)
        self._last_read, self._images_at_read = now, self.state.images
        return means

    def restart_clock(self) -> None:
        """Leave pictures and evaluations out of the images per second."""
        self._last_read, self._images_at_read = time.perf_counter(), self.state.images

    def _losses(self, micro: MicroBatch, progress: Progress, context: Context) -> dict[str, Loss]:
        with autocast(self.accelerator.device, self.config.runtime.precision):
            try:
                losses = self.components.objective.losses(self._models, micro.batch, micro.draws, progress, context)
            except PluginError as error:
                raise PluginError(f"The objective {self.config.objective.name!r}: {error}") from error
        check_losses(self.config.objective.name, losses, self.state, len(micro.draws.index))
        return losses

    def _update(self, trained: Collection[str], metrics: dict[str, Tensor], progress: Progress) -> None:
        training = self.config.training
        names = [name for name in self.state.roles if name in trained]
        optimizers = {name: self.state.roles[name].optimizer for name in names}
        norms = {name: optimizer.gradient_norm() for name, optimizer in optimizers.items() if optimizer is not None}
        total = reduce_mean(self.accelerator, torch.stack([metrics[f"{name}/loss"] for name in names]))
        finite = torch.isfinite(torch.stack([*norms.values()])).all() & torch.isfinite(total).all()
        skip = (~finite).float()
        decay = ema_decay(
            progress.images + training.batch_size,
            training.batch_size,
            training.ema.halflife_images,
            training.ema.rampup_ratio,
        )
        for name, optimizer in optimizers.items():
            if optimizer is None:
                continue
            role = self.state.roles[name]
            optimizer.step(self._learning_rate(optimizer.config, progress), norms[name], skip)
            role.updates += 1
            if role.ema is not None:
                step = ((1 - decay) * finite).to(norms[name].dtype)
                update_average(role.averages, role.parameters, step)
            metrics[f"{name}/gradient_norm"] = norms[name]
        for role in self.state.roles.values():
            if role.follows in optimizers:
                halflife = role.follow_halflife_images
                decay = 0.0 if halflife is None else 0.5 ** (training.batch_size / halflife)
                update_average(role.parameters, self.state.roles[role.follows].parameters, (1 - decay) * finite)
        self.meter.add(metrics, skip)

    def _learning_rate(self, config: OptimizerConfig, progress: Progress) -> float:
        """The schedule runs over the whole run, or over a round of an objective that has rounds."""
        first, last = (0, progress.total_images) if self._rounds is None else self._rounds.schedule_span(progress)
        return learning_rate(config, progress.images - first, last - first)

    def _context(self, micro_batches: list[MicroBatch], progress: Progress) -> Context:
        """With accumulation, means that enter the gradient need a first pass without gradient over all rows."""
        if len(micro_batches) == 1 or not self.components.objective.uses_batch_means:
            return ProcessContext(self.accelerator)
        collected = []
        with torch.no_grad():
            for micro in micro_batches:
                collecting = CollectingContext()
                self._losses(micro, progress, collecting)
                collected.append(collecting.means)
        return ReplayingContext(self.accelerator, collected)

    def _synchronised(self, last: bool) -> ExitStack:
        """Gradients travel between processes with the last micro-batch only."""
        stack = ExitStack()
        if not last:
            for role in self.state.roles.values():
                if role.optimizer is not None:
                    stack.enter_context(self.accelerator.no_sync(role.wrapped))
        return stack

    def _open_stream(self) -> Iterator[MicroBatch]:
        """This process's micro-batches from the image the run stands at; a function of that number alone."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        device, dtype = self.accelerator.device, DTYPES[self.config.runtime.precision]
        size, rows = self.config.training.batch_size, self._rows
        source, codec, teacher = self.components.source, self.components.codec, self.components.teacher
        data = source.batches(self.state.images, rows, rank, world) if source.has_data else None
        first = self.state.images
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
                    batch = next(data)
                    if batch.x is None:
                        raise PluginError(f"The source {self.config.source.name!r} yielded a batch without data.")
                    x = batch.x.to(device)
                    if source.encoded_by is None:
                        x = codec.encode(x)
                    batch = Batch(x.to(dtype), batch.condition)
                    self._check_shape(batch)
                else:
                    batch = Batch(None, teacher.sample_condition(draws) if teacher is not None else None)
                yield MicroBatch(batch, draws)
            first += size

    def _check_shape(self, batch: Batch) -> None:
        expected = tuple(self.components.student.sample_shape)
        if batch.x is not None and tuple(batch.x.shape[1:]) != expected:
            raise ConfigError(
                f"The source {self.config.source.name!r} yields states of shape {tuple(batch.x.shape[1:])} (through "
                f"the codec {self.config.codec.name!r}), but the student {self.config.student.name!r} works on "
                f"{expected}. Choose another source or codec, or set the student's sample_shape."
            )

    def _apply_transitions(self, changes: Iterable[Transition]) -> None:
        for change in changes:
            source = self.state.roles[change.copy_from].network
            self.state.roles[change.copy_to].network.load_state_dict(source.state_dict())
            for name in change.reset_optimizer:
                if (optimizer := self.state.roles[name].optimizer) is not None:
                    optimizer.reset()
            for name in change.reset_ema:
                role = self.state.roles[name]
                if role.ema is not None:
                    role.ema.load_state_dict(role.network.state_dict())


def _collect(metrics: dict[str, Tensor], losses: Mapping[str, Loss], share: float) -> None:
    for role, loss in losses.items():
        terms = {f"{role}/loss": loss.per_sample.detach().mean()}
        terms |= {f"{role}/{name}": value for name, value in loss.terms.items()}
        for name, value in terms.items():
            part = value if share == 1 else share * value
            metrics[name] = metrics[name] + part if name in metrics else part
