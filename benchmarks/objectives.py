"""The step of every objective over the network passes in it, and MeanFlow's beside the published algorithm as a loop.

python benchmarks/objectives.py [--turns 10] [--only freeflow meanflow] [--set training.batch_size=64]
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from step_time import EngineStep
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from freeflow_core.config import RunConfig, load_run_config
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.cost.rate import fresh_trainer
from freeflow_core.tools.cost.step import TEACHER, Rows, counted_rows

PRESET = "digits"
FROM_NOISE = ("freeflow", "freeflow-prediction", "freeflow-correction", "pairs", "score-distillation")
STUDENTS = {"pi-flow": "policy-transformer"}
CYCLE = 12
"""Steps of one turn: a multiple of the updates in turn of any objective here."""
FROM_DATA = "meanflow, velocity from data"
PEER = "the same as a plain loop, JVP of all rows"


class Passes:
    """The rows that a step sent through each network, sent once more, in as few calls as they fit in."""

    def __init__(self, config: RunConfig, teacher: Any, student: Any, count: dict[str, Rows]) -> None:
        self._teacher, self._student = teacher, copy.deepcopy(student)
        batch = config.training.batch_size
        self._calls: list[tuple[Callable[[int], None], int, float]] = []
        for name, rows in count.items():
            kinds = {self._gradient: rows.gradient, self._derivative: rows.derivative, self._plain: rows.plain}
            if name == TEACHER:
                kinds = {self._of_teacher: rows.plain + rows.derivative}
            for kind, number in kinds.items():
                if number:
                    calls = math.ceil(number / batch)
                    self._calls.append((kind, max(1, round(number / calls)), calls))

    def seconds(self) -> float:
        """Of all, one after the other."""
        return sum(number * timed(4, partial(call, rows)) for call, rows, number in self._calls)

    def _inputs(self, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t, s = torch.rand(2, rows).sort(0, descending=True).values
        return torch.randn(rows, *self._student.sample_shape), t, s, torch.arange(rows) % 10

    @torch.no_grad()
    def _plain(self, rows: int) -> None:
        self._student(*self._inputs(rows), None)

    def _gradient(self, rows: int) -> None:
        output = self._student(*self._inputs(rows), None)
        output.backward(output.detach() / output.numel())

    @torch.no_grad()
    def _derivative(self, rows: int) -> None:
        x, t, s, labels = self._inputs(rows)
        one = torch.ones_like(t)
        with sdpa_kernel(SDPBackend.MATH):
            jvp(lambda *along: self._student(*along, labels, None), (x, t, s), (x, one, torch.zeros_like(one)))

    @torch.no_grad()
    def _of_teacher(self, rows: int) -> None:
        x, t, _, labels = self._inputs(rows)
        self._teacher.velocity(x, t, labels)


class PeerStep:
    """MeanFlow (Geng et al. 2025, algorithm 1) as one would write it: v = n - x, s = t in three rows of four, one JVP
    of all rows that also gives the output, the adaptive weight, AdamW, an average."""

    def __init__(self, config: RunConfig, student: Any, source: Any) -> None:
        adam = config.training.optimizer
        self._student, self._average = student, copy.deepcopy(student).requires_grad_(False)
        self._weights, self._averages = list(student.parameters()), list(self._average.parameters())
        self._adam = torch.optim.AdamW(self._weights, lr=1e-4, betas=(adam.beta1, adam.beta2), weight_decay=0.0)
        images, self._labels = source.training_images()
        self._rows, self._x = config.training.batch_size, images / 127.5 - 1

    def __call__(self) -> None:
        chosen = torch.randint(len(self._x), (self._rows,))
        x, labels = self._x[chosen], self._labels[chosen]
        labels = torch.where(torch.rand(self._rows) < 0.1, self._student.num_classes, labels)
        t, s = torch.sigmoid(torch.randn(2, self._rows) - 0.4).sort(0, descending=True).values
        s = torch.where(torch.rand(self._rows) < 0.75, t, s)
        n = torch.randn_like(x)
        weight = (1 - t)[:, None, None, None]
        x_t, v = weight * x + (1 - weight) * n, n - x
        with sdpa_kernel(SDPBackend.MATH):
            u, dudt = jvp(
                lambda x_t, t, s: self._student(x_t, t, s, labels, None),
                (x_t, t, s),
                (v, torch.ones_like(t), torch.zeros_like(s)),
            )
        target = v - (t - s)[:, None, None, None] * dudt.detach()
        error = (u - target.detach()).square().flatten(1).sum(1)
        (error / (error.detach() + 1e-2)).mean().backward()
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        torch._foreach_lerp_(self._averages, self._weights, 1e-3)


def engine_step(config: RunConfig, registry: Registry) -> tuple[EngineStep, Any, dict[str, Rows]]:
    """The engine's step, the parts it is made of, and the rows through each network in a step, in the mean."""
    trainer = fresh_trainer(config, registry)
    state, components = trainer.state, trainer.components
    step = EngineStep(config, trainer, state)
    networks = {name: role.network for name, role in state.roles.items()}
    step()
    with counted_rows(networks, components.teacher) as count:
        for _ in range(CYCLE):
            step()
    return step, components, {name: rows / CYCLE for name, rows in count.items()}


def timed(calls: int, call: Callable[[], object]) -> float:
    """Seconds of one, in the mean: this process's own time, of one thread, whatever else the machine does."""
    before = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - before) / calls


def configured(registry: Registry, name: str, settings: list[str]) -> RunConfig:
    """The preset with another objective, and the source and student that it takes."""
    objective = {"name": "meanflow", "velocity": "data"} if name == FROM_DATA else {"name": name}
    overrides: dict[str, Any] = {"objective": objective, "trackers": [], "runtime": {"device": "cpu", "threads": 1}}
    if name not in FROM_NOISE:
        overrides["source"] = "digits"
    if name in STUDENTS:
        overrides["student"] = STUDENTS[name]
    return load_run_config(registry, "distill", preset=PRESET, overrides=overrides, assignments=settings)


def rows_of_table(registry: Registry, names: list[str], turns: int, settings: list[str]) -> Iterator[str]:
    """Markdown, row by row."""
    for name in names:
        config = configured(registry, name, settings)
        step, components, count = engine_step(config, registry)
        passes = Passes(config, components.teacher, components.student, count)
        peer = PeerStep(config, copy.deepcopy(components.student), components.source) if name == FROM_DATA else None
        found = []
        for _ in range(turns):
            row = [timed(CYCLE, step), passes.seconds()]
            found.append([*row, timed(CYCLE, peer)] if peer else row)
        forwards = sum(rows.forwards for rows in count.values()) / config.training.batch_size
        ratios = sorted(row[0] / row[1] for row in found)
        rate = config.training.batch_size / median(row[0] for row in found)
        yield f"| {name} | {forwards:.2f} | {rate:.0f} | {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        if peer:
            against = sorted(row[2] / row[0] for row in found)
            rate = config.training.batch_size / median(row[2] for row in found)
            longer = f"{median(against):.2f} ({against[0]:.2f} to {against[-1]:.2f})"
            yield f"| {PEER} | | {rate:.0f} | {longer} times the step above |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--only", nargs="*", help="objectives; default: all")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    options = parser.parse_args()
    registry = Registry(Manager.load())
    known = [name for name in registry.components("objective") if name != "flow-matching"]
    print("| objective | forward passes per image | images/s | step / passes |\n|---|---|---|---|")
    for row in rows_of_table(registry, options.only or [*known, FROM_DATA], options.turns, options.set):
        print(row, flush=True)


if __name__ == "__main__":
    main()
