"""What a step of a large recipe costs on this machine, and where its time goes: with random weights, and no download.

python benchmarks/xl_step.py                                                  # needs a GPU with 80 GB
python benchmarks/xl_step.py --device cpu --set teacher.size=S --batch 4 --steps 2
torchrun --nproc_per_node 8 benchmarks/xl_step.py --batch 256 --sharding none full      # needs eight of them
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise, product
from pathlib import Path
from statistics import mean, median
from typing import Any, final

import torch
from accelerate import Accelerator
from step_time import Clock
from torch import Tensor, nn

from freeflow_core import api
from freeflow_core.config import RunConfig, load_run_config
from freeflow_core.engine.blocks import compiling
from freeflow_core.engine.build import Builder, build_components
from freeflow_core.engine.process import from_each, from_main, peak_memory, start_accelerator
from freeflow_core.engine.state import build_state
from freeflow_core.engine.trainer import Trainer
from freeflow_core.errors import FreeflowError
from freeflow_core.files import write_text
from freeflow_core.interfaces import Teacher
from freeflow_core.math.derivative import float32_products
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
    """Marks of a step. The time from a mark to the next belongs to the first one's name."""

    def __init__(self, device: torch.device) -> None:
        self._clock = Clock(device)
        self._marks: list[tuple[str, Any]] = []
        self._open: list[str] = []

    def mark(self, name: str) -> None:
        """From now on it is ``name``'s time."""
        self._marks.append((name, self._clock.mark()))

    def begin(self, name: str) -> None:
        """From now on it is ``name``'s time, until :meth:`end`."""
        self._open.append(name)
        self.mark(name)

    def end(self) -> None:
        """From now on it is the time of what was begun before, or of nobody."""
        self._open.pop()
        self.mark(self._open[-1] if self._open else OTHER)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time of ``name``."""
        self.begin(name)
        yield
        self.end()

    def wait(self) -> None:
        """Until the device has done everything marked."""
        self._clock.wait()

    def read(self) -> dict[str, float]:
        """Seconds of a step by name since the last reading, after :meth:`wait`."""
        seconds = dict.fromkeys(SHARES, 0.0)
        last = max((number for number, (name, _) in enumerate(self._marks) if name == UPDATE), default=None)
        for number, ((name, earlier), (_, later)) in enumerate(pairwise(self._marks)):
            # Of several backward passes only the last is followed by the update.
            seconds[OTHER if name == UPDATE and number != last else name] += self._clock.seconds(earlier, later)
        self._marks.clear()
        return seconds


@contextmanager
def timed(networks: Mapping[str, nn.Module], teacher: Teacher | None, tape: Tape) -> Iterator[None]:
    """Meanwhile the calls of roles' networks and of the teacher, and backward passes, go onto the tape.

    By hooks: what the engine is given stays of the kind it is, for it takes its way by that.
    """

    def begin(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            # The student is asked without gradient for derivatives, and with accumulation once more for states.
            tape.begin(DERIVATIVE if name == STUDENT and not torch.is_grad_enabled() else name)

        return hook

    def end(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, out: Tensor) -> None:
            tape.end()
            if out.requires_grad:  # its part of the backward pass lasts from here to another network's
                out.register_hook(lambda gradient: tape.mark(name))  # type: ignore[no-untyped-call]

        return hook

    def asked(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def timed_method(*inputs: Any, **options: Any) -> Tensor:
            with tape.span(TEACHER):
                return method(*inputs, **options)

        return timed_method

    handles = []
    for role, network in networks.items():
        name = STUDENT if role == "student" else FAKE_VELOCITY
        # Outside of the hooks of divided networks, which gather weights.
        handles.append(network.register_forward_pre_hook(begin(name), prepend=True))
        handles.append(network.register_forward_hook(end(name)))
    methods = () if teacher is None else ("velocity", "guided_velocity")
    for method in methods:
        vars(teacher)[method] = asked(getattr(teacher, method))  # shadows the method
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for method in methods:
            del vars(teacher)[method]


@final
class TimedAccelerator:
    """An accelerator that tells the tape where a backward pass ends, after the last of which the update begins."""

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
    tape, rows = Tape(device), []
    accelerated: Any = TimedAccelerator(accelerator, tape)
    trainer = Trainer(config, components, state, accelerated)
    with timed({name: role.network for name, role in state.roles.items()}, components.teacher, tape):
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
        for _ in range(steps):
            tape.mark(OTHER)
            trainer.step()
            tape.mark(OTHER)
            tape.wait()
            rows.append(tape.read())
    peak = peak_memory(device)
    trainer.read_metrics()  # raises when a step was not finite
    own = {
        "seconds per step": median(sum(row.values()) for row in rows),
        "first step, seconds": first,
        "peak memory, GiB": peak / 2**30,
        "shares": {name: median(row[name] / sum(row.values()) for row in rows) for name in SHARES},
    }
    if state.sharding is not None:
        state.sharding.close()
    return of_all(from_each(accelerator, [own]), config.training.batch_size)


def of_all(processes: Sequence[Numbers], batch_size: int) -> Numbers:
    """A step of all processes together: the slowest's time, the largest memory, the mean of their shares."""
    largest = {name: max(numbers[name] for numbers in processes) for name in processes[0] if name != "shares"}
    return {
        **largest,
        "images per second": batch_size / largest["seconds per step"],
        "shares": {name: mean(numbers["shares"][name] for numbers in processes) for name in SHARES},
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


def variants(derivatives: Sequence[str], modes: Sequence[str], shardings: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Settings by name; without ``shardings`` they are left as they are."""
    found = {}
    for sharding, derivative, mode in product(shardings or [None], derivatives, modes):
        name, settings = f"{derivative}, {mode}", [f"objective.derivative={derivative}"]
        settings.append(f"runtime.compile={'true' if mode == 'compiled' else 'false'}")
        if sharding is not None:
            name, settings = f"{name}, sharding {sharding}", [*settings, f"runtime.sharding={sharding}"]
        found[name] = tuple(settings)
    return found


def one_variant(config: RunConfig, options: argparse.Namespace, process: Accelerator) -> Numbers:
    """Everything about one way of running the step.

    ``{"failed": why}`` when it does not fit into memory; of several processes those that it fits into would wait for
    the others, so that ``FreeflowError`` ends them all.
    """
    manager = Manager.load()
    plan = from_main(process, lambda: api.plan(config, num_processes=process.num_processes, manager=manager))
    planned = {"planned memory, GiB": plan.peak / 2**30}
    try:
        with compiling(config.runtime), float32_products(config.runtime.matmul_precision):
            numbers = measure(config, Registry(manager), steps=options.steps, warmup=options.warmup)
    except torch.OutOfMemoryError:
        if process.num_processes > 1:
            raise FreeflowError(
                f"The step does not fit into the memory of process {process.process_index}, of which "
                f"{planned['planned memory, GiB']:.1f} GiB are planned for it. Use a smaller --batch, --sharding full, "
                "or name variants that fit with --derivatives and --modes."
            ) from None
        return {"failed": "does not fit into memory", **planned}
    finally:
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
        torch.compiler.reset()
    per_second = plan.flops_per_step / numbers["seconds per step"]
    return {**numbers, **planned, "operations per step": plan.flops_per_step, "operations per second": per_second}


def cells(numbers: Numbers, rate: float) -> dict[str, str]:
    """One column of the table, by row. ``rate``: of all processes' devices together."""
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
    parser.add_argument(
        "--sharding", nargs="+", choices=("none", "full", "hybrid"), help="under torchrun; default as the settings are"
    )
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
        config = configure()
        process = start_accelerator(config.runtime)
        number, precision = process.num_processes, config.runtime.precision
        if options.sharding and number == 1:
            parser.error("--sharding divides networks among processes: start several, with torchrun")
        side = options.matrix or (8192 if options.device == "cuda" else 1024)
        rates = from_each(process, [matrix_rate(process.device, precision, side)])
        processor = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
        about = (
            f"{options.preset}{''.join(f', {text}' for text in options.set)}, random weights, batch {options.batch}, "
            f"{precision}, {processor}, torch {torch.__version__}, median of {options.steps} steps; "
            f"{'1 process' if number == 1 else f'{number} processes, memory of one'}; matrix rate "
            f"{sum(rates) / 1e12:.4g} TFLOP/s ({side} x {side}, {precision}{', sum of all' if number > 1 else ''})"
        )
        found: Numbers = {"about": about, "processes": number, "matrix rate": sum(rates), "variants": {}}
        shardings = options.sharding or ([config.runtime.sharding] if number > 1 else [])
        for name, settings in variants(options.derivatives, options.modes, shardings).items():
            numbers = one_variant(configure(*settings), options, process)
            found["variants"][name] = numbers
            if process.is_main_process:
                print(f"{name}: {numbers.get('failed', 'done')}", file=sys.stderr)
                if options.json is not None:  # now, for the next may end them all
                    write_text(options.json, json.dumps(found, indent=2) + "\n")
    except FreeflowError as error:
        print(error, file=sys.stderr)
        return 2
    if process.is_main_process:
        print(f"{about}\n\n{table(found['variants'], found['matrix rate'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
