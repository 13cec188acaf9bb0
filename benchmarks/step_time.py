"""Time of the engine's training step beside a plain loop's, and beside the network passes that neither can avoid.

python benchmarks/step_time.py --preset digits --steps 60 --repeats 5 --device cpu
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any, final

import torch
from plain_loop import PlainLoop
from torch import Tensor

from freeflow_core.config import RunConfig, load_run_config
from freeflow_core.engine.build import Builder, build_components
from freeflow_core.engine.process import start_accelerator
from freeflow_core.engine.state import TrainingState, build_state
from freeflow_core.engine.trainer import Trainer
from freeflow_core.errors import FreeflowError
from freeflow_core.plugin import Manager, Registry

ENGINE, PLAIN, PASSES, UPDATE = "engine", "plain loop", "passes", "optimizer and average"
STUDENT, DERIVATIVE, TEACHER, FAKE_VELOCITY = (
    "student, forward and backward",
    "derivative",
    "teacher",
    "fake velocity, forward and backward",
)
Times = dict[str, list[float]]
"""Seconds per step by what was timed; entry i of each list was taken in the i-th turn."""


@final
class EngineStep:
    """The engine's trainer without tracker, evaluation or checkpoints; metrics are read as often as in a run."""

    def __init__(self, config: RunConfig, trainer: Trainer, state: TrainingState) -> None:
        self._every = config.logging.every_images
        self._trainer, self._state = trainer, state

    def __call__(self) -> None:
        before = self._state.images
        self._trainer.step()
        if before // self._every < self._state.images // self._every:
            self._trainer.read_metrics()


@final
class Passes:
    """The network passes of one step, each alone: same networks, same numbers of rows, nothing in between.

    Args:
        loop: whose networks and optimizer are used, and change; for this alone.
    """

    def __init__(self, loop: PlainLoop) -> None:
        self._loop = loop
        draws = loop.draw()
        total, ahead = loop.rows, loop.num_prediction
        guided = int((loop.teacher_weights(draws) != 1).sum())
        self.num_rows = {
            STUDENT: total,
            DERIVATIVE: ahead if loop.objective.derivative == "one-sided" else 2 * ahead,
            TEACHER: total + guided,
            FAKE_VELOCITY: total - ahead,
        }
        self._x = torch.cat([draws.z, draws.z])
        self._t = torch.rand(2 * total, device=draws.z.device, dtype=draws.z.dtype)
        self._labels = None if draws.labels is None else torch.cat([draws.labels, draws.labels])

    def parts(self) -> dict[str, Callable[[], None]]:
        """Each pass by name, in the order of a step; the last updates weights and average and drops the gradients."""
        return {
            STUDENT: lambda: self._gradient_pass(STUDENT),
            DERIVATIVE: self._derivative,
            TEACHER: self._teacher,
            FAKE_VELOCITY: lambda: self._gradient_pass(FAKE_VELOCITY),
            UPDATE: self._loop.update,
        }

    def _inputs(self, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
        n = self.num_rows[name]
        return self._x[:n], self._t[:n], None if self._labels is None else self._labels[:n]

    def _gradient_pass(self, name: str) -> None:
        x, t, labels = self._inputs(name)
        network = self._loop.student if name == STUDENT else self._loop.fake_velocity
        output = network(x, t, t, labels, t)
        output.backward(output.detach() / output.numel())  # a gradient that keeps the weights sane

    @torch.no_grad()
    def _derivative(self) -> None:
        x, t, labels = self._inputs(DERIVATIVE)
        self._loop.student(x, t, t, labels, t)

    @torch.no_grad()
    def _teacher(self) -> None:
        x, t, labels = self._inputs(TEACHER)
        self._loop.teacher.velocity(x, t, labels)


@final
class Clock:
    """Marks in the device's own time, so that marking does not make the host wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"

    def mark(self) -> Any:
        """Now: a time, or an event in the device's queue."""
        if not self._on_cuda:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def wait(self) -> None:
        """Until everything marked has happened."""
        if self._on_cuda:
            torch.cuda.synchronize()

    def seconds(self, earlier: Any, later: Any) -> float:
        """Between two marks, after ``wait``."""
        return float(earlier.elapsed_time(later)) / 1e3 if self._on_cuda else later - earlier


@final
@dataclass(frozen=True)
class Contestant:
    """What is timed: ``parts`` by name, run one after the other; ``deterministic`` is torch's setting meanwhile."""

    parts: Mapping[str, Callable[[], None]]
    deterministic: bool = False

    def take_turn(self, clock: Clock, calls: int) -> dict[str, float]:
        """Mean seconds of each part over ``calls`` consecutive calls, after one for the caches."""
        torch.use_deterministic_algorithms(self.deterministic, warn_only=True)
        for function in self.parts.values():
            function()
        clock.wait()
        marks = [clock.mark()]
        for _ in range(calls):
            for function in self.parts.values():
                function()
                marks.append(clock.mark())
        clock.wait()
        spans = [clock.seconds(a, b) for a, b in pairwise(marks)]
        return {name: mean(spans[i :: len(self.parts)]) for i, name in enumerate(self.parts)}


def measure(config: RunConfig, registry: Registry, *, turns: int, calls: int) -> tuple[Times, dict[str, int]]:
    """Take turns: engine, plain loop, passes; every second turn in reverse order, so that drift cancels.

    Args:
        config: of the objective ``freeflow``.
        registry: of all plugins.
        turns: turns after the one that warms up.
        calls: consecutive steps of one turn.

    Returns:
        The times, and the number of rows of each pass.
    """
    accelerator = start_accelerator(config.runtime)
    components = build_components(Builder(registry, accelerator.device, config.seed), config)
    copies: list[Any] = [copy.deepcopy(components.student) for _ in range(4)]
    state = build_state(config, components, accelerator)
    assert components.teacher is not None
    loop = PlainLoop(config, copies[0], copies[1], components.teacher)
    passes = Passes(PlainLoop(config, copies[2], copies[3], components.teacher))
    engine = EngineStep(config, Trainer(config, components, state, accelerator), state)
    contestants = [
        Contestant({ENGINE: engine}, deterministic=config.runtime.deterministic),
        Contestant({PLAIN: lambda: loop.step(loop.draw())}),  # as torch comes, like a script
        Contestant(passes.parts()),
    ]
    clock = Clock(accelerator.device)
    times: Times = {name: [] for contestant in contestants for name in contestant.parts}
    for turn in range(-1, turns):
        for contestant in contestants[:: -1 if turn % 2 else 1]:
            for name, seconds in contestant.take_turn(clock, calls).items():
                times[name] += [seconds] if turn >= 0 else []
    times[PASSES] = [sum(row) for row in zip(*(times[name] for name in passes.num_rows), strict=True)]
    return times, passes.num_rows


def ratio(times: Times, above: str, below: str, repeats: int) -> dict[str, float]:
    """Median over all turns of the ratio within one turn; least and greatest median of one repeat."""
    pairs = [a / b for a, b in zip(times[above], times[below], strict=True)]
    size = len(pairs) // repeats
    medians = [median(pairs[i * size : (i + 1) * size]) for i in range(repeats)]
    return {"median": median(pairs), "min": min(medians), "max": max(medians)}


def report(times: Times, rows: Mapping[str, int], repeats: int) -> dict[str, Any]:
    """The numbers, in milliseconds per step."""
    return {
        "milliseconds": {name: {"median": 1e3 * median(values), "min": 1e3 * min(values), "max": 1e3 * max(values)}
                         for name, values in times.items()},
        "rows": dict(rows),
        "engine / plain loop": ratio(times, ENGINE, PLAIN, repeats),
        "engine / passes": ratio(times, ENGINE, PASSES, repeats),
        "plain loop / passes": ratio(times, PLAIN, PASSES, repeats),
    }  # fmt: skip


def show(numbers: Mapping[str, Any], about: str) -> None:
    """Print the table."""
    print(about)
    print(f"{'ms per step':<44}{'median':>9}{'min':>9}{'max':>9}")
    for name in (ENGINE, PLAIN, PASSES, *numbers["rows"], UPDATE):
        spread = numbers["milliseconds"][name]
        indent = "" if name in (ENGINE, PLAIN, PASSES) else "  "
        count = f" ({numbers['rows'][name]} rows)" if name in numbers["rows"] else ""
        print(f"{indent + name + count:<44}" + "".join(f"{spread[k]:>9.2f}" for k in ("median", "min", "max")))
    print(f"{'ratio within one turn':<44}{'median':>9}{'min':>9}{'max':>9}")
    for name in ("engine / plain loop", "engine / passes", "plain loop / passes"):
        print(f"{name:<44}" + "".join(f"{numbers[name][k]:>9.3f}" for k in ("median", "min", "max")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="digits", help="a preset of the objective freeflow")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="change the preset, as for freeflow"
    )
    parser.add_argument("--steps", type=int, default=60, help="steps of each contestant per repeat")
    parser.add_argument("--repeats", type=int, default=5, help="repeats; their medians give the spread of a ratio")
    parser.add_argument("--calls", type=int, help="consecutive steps of one turn; default 5, on cuda 20")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers here")
    options = parser.parse_args(arguments)
    calls = options.calls or (20 if options.device == "cuda" else 5)
    if min(options.steps, options.repeats, calls) < 1 or options.steps % calls:
        parser.error(f"--steps={options.steps} must be a positive multiple of the {calls} consecutive --calls")
    registry = Registry(Manager.load())
    overrides = {"trackers": [], "runtime": {"device": options.device}}
    try:
        config = load_run_config(
            registry, "distill", preset=options.preset, overrides=overrides, assignments=options.set
        )
        turns = options.repeats * options.steps // calls
        times, rows = measure(config, registry, turns=turns, calls=calls)
    except FreeflowError as error:
        print(error, file=sys.stderr)
        return 2
    numbers = report(times, rows, options.repeats)
    processor = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    about = (
        f"{options.preset}, batch {config.training.batch_size}, {config.runtime.precision}, {processor}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {turns} turns of {calls} step(s)"
    )
    show(numbers, about)
    if options.json is not None:
        options.json.write_text(json.dumps({"about": about, **numbers}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
