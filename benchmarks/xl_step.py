"""What a step of a large recipe costs on this machine, and where its time goes: with random weights, and no download.

python benchmarks/xl_step.py                                                  # needs a GPU with 80 GB
python benchmarks/xl_step.py --device cpu --set teacher.size=S --batch 4 --steps 2
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, final

import torch
from step_time import Clock
from torch import Tensor

from freeflow_core import api
from freeflow_core.config import RunConfig, load_run_config
from freeflow_core.engine.blocks import compiling
from freeflow_core.engine.build import Builder, build_components
from freeflow_core.engine.process import peak_memory, start_accelerator
from freeflow_core.engine.state import build_state
from freeflow_core.engine.trainer import Trainer
from freeflow_core.errors import FreeflowError
from freeflow_core.interfaces import Model, Models
from freeflow_core.plugin import Manager, Registry

TEACHER, STUDENT, DERIVATIVE, FAKE_VELOCITY, UPDATE, OTHER = SHARES = (
    "teacher",
    "student, forward and backward",
    "student, derivative",
    "fake velocity, forward and backward",
    "optimizer and average",
    "everything else",
)
Numbers = dict[str, Any]


@final
class Tape:
    """Marks of one step after another. The time from a mark to the next belongs to the first one's name."""

    def __init__(self, device: torch.device) -> None:
        self._clock = Clock(device)
        self._marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """From now on it is ``name``'s time."""
        self._marks.append((name, self._clock.mark()))

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time of ``name``, then of nobody."""
        self.mark(name)
        yield
        self.mark(OTHER)

    def backward(self, name: str, out: Tensor) -> Tensor:
        """Give ``name`` the time from the arrival of the output's gradient, until another network's arrives."""
        if out.requires_grad:
            out.register_hook(lambda gradient: self.mark(name))  # type: ignore[no-untyped-call]
        return out

    def wait(self) -> None:
        """Until the device has done everything marked."""
        self._clock.wait()

    def read(self) -> dict[str, float]:
        """Seconds by name since the last reading, after :meth:`wait`."""
        seconds = dict.fromkeys(SHARES, 0.0)
        for (name, earlier), (_, later) in pairwise(self._marks):
            seconds[name] += self._clock.seconds(earlier, later)
        self._marks.clear()
        return seconds


@final
class TimedNetwork:
    """A role's network whose calls, and whose part of the backward pass, go onto the tape."""

    def __init__(self, network: Any, name: str, tape: Tape) -> None:
        self._network, self._name, self._tape = network, name, tape

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        with self._tape.span(self._name):
            out: Tensor = self._network(*inputs, **options)
        return self._tape.backward(self._name, out)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


@final
class TimedTeacher:
    """A teacher whose velocities go onto the tape."""

    def __init__(self, teacher: Any, tape: Tape) -> None:
        self._teacher, self._tape = teacher, tape

    def velocity(self, *inputs: Any) -> Tensor:
        """As the teacher's."""
        with self._tape.span(TEACHER):
            return self._teacher.velocity(*inputs)

    def guided_velocity(self, *inputs: Any) -> Tensor:
        """As the teacher's."""
        with self._tape.span(TEACHER):
            return self._teacher.guided_velocity(*inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)


@final
class TimedObjective:
    """An objective that is shown timed networks."""

    def __init__(self, objective: Any, tape: Tape) -> None:
        self._objective, self._tape = objective, tape

    def losses(self, models: Models, *others: Any) -> Any:
        """As the objective's."""
        teacher: Any = TimedTeacher(models.teacher, self._tape)
        timed = {
            name: Model(
                self._timed(model.wrapped, STUDENT if name == "student" else FAKE_VELOCITY),
                self._timed(model.bare, DERIVATIVE if name == "student" else FAKE_VELOCITY),
                is_compiled=model.is_compiled,
            )
            for name, model in models.items()
        }
        return self._objective.losses(Models(timed, teacher), *others)

    def _timed(self, network: Any, name: str) -> Any:
        return TimedNetwork(network, name, self._tape)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)


@final
class TimedAccelerator:
    """An accelerator that tells the tape where the backward pass ends and the update begins."""

    def __init__(self, accelerator: Any, tape: Tape) -> None:
        self._accelerator, self._tape = accelerator, tape

    def backward(self, loss: Tensor) -> None:
        """As the accelerator's."""
        self._tape.mark(OTHER)
        self._accelerator.backward(loss)
        self._tape.mark(UPDATE)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


def measure(config: RunConfig, registry: Registry, *, steps: int, warmup: int) -> Numbers:
    """Steps as a run takes them, their parts timed by marks in the device's own queue.

    Raises ``torch.OutOfMemoryError`` when they do not fit, and ``NonFiniteError`` when they are not finite.
    """
    accelerator = start_accelerator(config.runtime)
    device = accelerator.device
    components = build_components(Builder(registry, device, config.seed, config.runtime.precision), config)
    state = build_state(config, components, accelerator)
    tape = Tape(device)
    objective: Any = TimedObjective(components.objective, tape)
    watched = dataclasses.replace(components, objective=objective)
    trainer = Trainer(config, watched, state, TimedAccelerator(accelerator, tape))
    began = time.perf_counter()
    trainer.step()
    trainer.read_metrics()
    first = time.perf_counter() - began
    for _ in range(warmup):
        trainer.step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    tape.wait()
    tape.read()
    rows = []
    for _ in range(steps):
        tape.mark(OTHER)
        trainer.step()
        tape.mark(OTHER)
        tape.wait()
        rows.append(tape.read())
    peak = peak_memory(device)
    trainer.read_metrics()  # raises when a step was not finite
    step = median(sum(row.values()) for row in rows)
    return {
        "seconds per step": step,
        "images per second": config.training.batch_size / step,
        "first step, seconds": first,
        "peak memory, GiB": peak / 2**30,
        "shares": {name: median(row[name] / sum(row.values()) for row in rows) for name in SHARES},
    }


def matrix_rate(device: torch.device, precision: str, size: int) -> float:
    """Floating-point operations per second of one large matrix product in the precision of the run: the best of ten."""
    dtype = {"bf16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}[precision]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    clock, best = Clock(device), float("inf")
    for _ in range(10):
        earlier = clock.mark()
        a @ b
        later = clock.mark()
        clock.wait()
        best = min(best, clock.seconds(earlier, later))
    return 2 * size**3 / best


def variants(derivatives: Sequence[str], modes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Settings by name."""
    return {
        f"{derivative}, {mode}": (
            f"objective.derivative={derivative}",
            f"runtime.compile={'true' if mode == 'compiled' else 'false'}",
        )
        for derivative in derivatives
        for mode in modes
    }


def one_variant(configure: Callable[..., RunConfig], settings: Sequence[str], options: argparse.Namespace) -> Numbers:
    """Everything about one way of running the step; ``{"failed": why}`` when it does not fit into memory."""
    config = configure(*settings)
    manager = Manager.load()
    plan = api.plan(config, num_processes=1, manager=manager)
    try:
        with compiling(config.runtime):
            numbers = measure(config, Registry(manager), steps=options.steps, warmup=options.warmup)
    except torch.OutOfMemoryError:
        return {"failed": "does not fit into memory", "planned memory, GiB": plan.peak / 2**30}
    finally:
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
        torch.compiler.reset()
    per_second = plan.flops_per_step / numbers["seconds per step"]
    return {
        **numbers,
        "planned memory, GiB": plan.peak / 2**30,
        "operations per step": plan.flops_per_step,
        "operations per second": per_second,
    }


def cells(numbers: Numbers, rate: float) -> dict[str, str]:
    """One column of the table, by row."""
    planned = {"planned memory, GiB": f"{numbers['planned memory, GiB']:.2f}"}
    if "failed" in numbers:
        return {"step, ms": numbers["failed"], **planned}
    return {
        "step, ms": f"{1e3 * numbers['seconds per step']:.1f}",
        "images/s": f"{numbers['images per second']:.1f}",
        "peak memory, GiB": f"{numbers['peak memory, GiB']:.2f}",
        **planned,
        **{f"share of {name}": f"{share:.1%}" for name, share in numbers["shares"].items()},
        "TFLOP per step": f"{numbers['operations per step'] / 1e12:.3g}",
        "achieved TFLOP/s": f"{numbers['operations per second'] / 1e12:.3g}",
        "of the measured matrix rate": f"{numbers['operations per second'] / rate:.1%}",
        "first step, s": f"{numbers['first step, seconds']:.1f}",
    }


def table(results: Mapping[str, Numbers], rate: float) -> str:
    """The numbers as Markdown, one column a variant."""
    columns = [cells(numbers, rate) for numbers in results.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [["", *results], ["---"] * (len(columns) + 1)]
    rows += [[name, *(column.get(name, "-") for column in columns)] for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="sit-repa-xl2-256", help="a preset of the objective freeflow")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change it, as for freeflow")
    parser.add_argument("--batch", type=int, default=64, help="images per step (the preset's 256 need 142 GiB)")
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them, after the first")
    parser.add_argument("--derivatives", nargs="+", default=["forward-mode", "central"], metavar="NAME")
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"], choices=("eager", "compiled"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument(
        "--matrix", type=int, help="side of the matrices whose product is timed; default 8192, on cpu 1024"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers here")
    options = parser.parse_args(arguments)
    if min(options.batch, options.steps) < 1 or options.warmup < 0:
        parser.error("--batch and --steps must be at least 1, and --warmup at least 0")
    registry = Registry(Manager.load())

    def configure(*settings: str) -> RunConfig:
        overrides = {
            "teacher": {"initialise": "random"},
            "runtime": {"device": options.device},
            "training": {"batch_size": options.batch},
            "evaluation": {"enabled": False},
            "trackers": [],
        }
        return load_run_config(
            registry, "distill", preset=options.preset, overrides=overrides, assignments=(*options.set, *settings)
        )

    try:
        precision = configure().runtime.precision
        start_accelerator(configure().runtime)
        side = options.matrix or (8192 if options.device == "cuda" else 1024)
        rate = matrix_rate(torch.device(options.device), precision, side)
        results = {}
        for name, settings in variants(options.derivatives, options.modes).items():
            results[name] = one_variant(configure, settings, options)
            print(f"{name}: {results[name].get('failed', 'done')}", file=sys.stderr)
    except FreeflowError as error:
        print(error, file=sys.stderr)
        return 2
    processor = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    about = (
        f"{options.preset}{''.join(f', {text}' for text in options.set)}, random weights, batch {options.batch}, "
        f"{precision}, {processor}, torch {torch.__version__}, median of {options.steps} steps; matrix rate "
        f"{rate / 1e12:.4g} TFLOP/s ({side} x {side}, {precision})"
    )
    print(f"{about}\n\n{table(results, rate)}")
    if options.json is not None:
        found = {"about": about, "matrix rate": rate, "variants": results}
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
