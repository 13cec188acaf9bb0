"""Time of the engine's training step beside a plain loop's, and beside the network passes that neither can avoid.

python benchmarks/step_time.py --preset digits --steps 60 --repeats 5 --device cpu
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from plain_loop import PlainLoop
from torch import Tensor

from freeflow_core.config import RunConfig
from freeflow_core.engine.state import TrainingState
from freeflow_core.engine.trainer import Trainer

ENGINE, PLAIN, PASSES = "engine step", "plain loop step", "sum of passes"
TIMED_PASSES = ("student forward + backward", "derivative", "teacher", "fake velocity forward + backward")
UPDATE = "optimizer and average"


@final
class Engine:
    """The engine's own trainer, without tracker, evaluation or checkpoints; metrics are read as a run reads them."""

    def __init__(self, config: RunConfig, trainer: Trainer, state: TrainingState) -> None:
        self.config, self.trainer, self.state = config, trainer, state

    def step(self) -> None:
        """One step, and the reading of the metrics when the logging interval is full."""
        before, every = self.state.images, self.config.logging.every_images
        self.trainer.step()
        if before // every < self.state.images // every:
            self.trainer.read_metrics()


@final
class Passes:
    """The network passes of one step, each by itself: the same networks, kernels and row counts, nothing between them.

    Args:
        loop: whose networks, optimizer and rows are used.
    """

    def __init__(self, loop: PlainLoop) -> None:
        self.loop = loop
        self.draws = loop.draw()
        self.times: dict[str, Callable[[], None]] = {
            TIMED_PASSES[0]: self._student,
            TIMED_PASSES[1]: self._derivative,
            TIMED_PASSES[2]: self._teacher,
            TIMED_PASSES[3]: self._fake_velocity,
            UPDATE: loop.update,
        }
        z, total, ahead = self.draws.z, loop.rows, loop.num_prediction
        guided = int((loop.teacher_weights(self.draws) != 1).sum())
        behind = ahead if loop.objective.derivative == "one-sided" else 2 * ahead
        self.num_rows = dict(zip(TIMED_PASSES, (total, behind, total + guided, total - ahead), strict=True))
        self._t = torch.rand(2 * total, device=z.device, dtype=z.dtype)
        self._x = torch.cat([z, z])
        labels = self.draws.labels
        self._labels = None if labels is None else torch.cat([labels, labels])
        self._ones = torch.ones_like(self._t)

    def _inputs(self, name: str) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        n = self.num_rows[name]
        return self._x[:n], self._t[:n], None if self._labels is None else self._labels[:n], self._ones[:n]

    def _student(self) -> None:
        x, t, labels, ones = self._inputs(TIMED_PASSES[0])
        output = self.loop.student(x, ones, t, labels, ones)
        output.backward(torch.ones_like(output))

    @torch.no_grad()
    def _derivative(self) -> None:
        x, t, labels, ones = self._inputs(TIMED_PASSES[1])
        self.loop.student(x, ones, t, labels, ones)

    @torch.no_grad()
    def _teacher(self) -> None:
        x, t, labels, _ = self._inputs(TIMED_PASSES[2])
        self.loop.teacher.velocity(x, t, labels)

    def _fake_velocity(self) -> None:
        x, t, labels, ones = self._inputs(TIMED_PASSES[3])
        output = self.loop.fake_velocity(x, t, t, labels, ones)
        output.backward(torch.ones_like(output))
