"""What each way to a student's derivative costs and gives, preset by preset: docs/reference/performance.md.

OMP_NUM_THREADS=1 python benchmarks/derivative_cost.py                      # digits, mnist, mnist-guided
python benchmarks/derivative_cost.py --random --presets sit-repa-xl2-256    # a GPU of 80 GB; its errors alone:
python benchmarks/derivative_cost.py --random --presets sit-repa-xl2-256 --errors --set training.batch_size=8
                                                                            # 16 GB; a part of it on a CPU:
python benchmarks/derivative_cost.py --random --presets sit-repa-xl2-256 --set teacher.depth=2 teacher.width=1152 \\
    teacher.num_heads=16 training.batch_size=4
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from freeflow_core import api
from freeflow_core.config import RunConfig
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.derivatives import derivative_errors, derivative_ways

_BITS = 23 - 10
"""By which TF32's significands are shorter than float32's."""


class EmulatedTF32(TorchDispatchMode):
    """Rounds the float32 factors of products as TF32 would, to nearest; their sums stay in float32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm", "convolution"):
            first = len(args) - 2 if "mm" in func.overloadpacket.__name__ else 0
            args = [_rounded(a) if first <= i < first + 2 else a for i, a in enumerate(args)]
        return func(*args, **(kwargs or {}))


def _rounded(x: torch.Tensor) -> torch.Tensor:
    if x.dtype is not torch.float32:
        return x
    return ((x.contiguous().view(torch.int32) + (1 << (_BITS - 1))) >> _BITS << _BITS).view(torch.float32)


def row(name: str, way: object, seconds: float | None, path: float, duration: float) -> str:
    """Of the table; ``seconds`` of a step, None where none was taken."""
    return f"| {name} | {way} | {'-' if seconds is None else f'{1e3 * seconds:.4g}'} | {path:.1e} | {duration:.1e} |"


def rows(name: str, config: RunConfig, manager: Manager, trained: int, errors_alone: bool) -> list[str]:
    """One a way; and where steps are taken on a CPU, whose products are float32, one for forward mode in TF32."""

    def errors(ways: Sequence[dict[str, str]]) -> list[tuple[float, float]]:
        return derivative_errors(config, Registry(manager), ways, step=5e-3, trained_steps=trained)

    if errors_alone:
        ways = list(derivative_ways(config))
        return [
            row(name, ", ".join(map("=".join, way.items())), None, *found)
            for way, found in zip(ways, errors(ways), strict=True)
        ]
    is_cpu = config.runtime.device == "cpu" or not torch.cuda.is_available()
    clock = time.process_time if is_cpu else time.perf_counter
    costs = api.measure_derivatives(config, manager, trained_steps=trained, clock=clock)
    table = [row(name, cost, cost.step_seconds, cost.path_error, cost.duration_error) for cost in costs]
    if is_cpu:
        with EmulatedTF32():
            (found,) = errors([{"derivative": "forward-mode"}])
        table.insert(1, row(name, "derivative=forward-mode, TF32 emulated", None, *found))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["digits", "mnist", "mnist-guided"], metavar="NAME")
    parser.add_argument(
        "--train", type=int, default=0, help="steps before errors are measured; 0: noise on all weights"
    )
    parser.add_argument("--errors", action="store_true", help="take no steps: a network whose training does not fit")
    parser.add_argument("--random", action="store_true", help="of a released teacher with random weights")
    parser.add_argument("--set", nargs="+", default=[], metavar="A.B=C", help="change it, as for freeflow")
    options = parser.parse_args(arguments)
    manager = Manager.load()
    print("| preset | derivative | ms a step (of a CPU: its own time) | error along the path | error in the duration |")
    print("|---|---|---|---|---|")
    for name in options.presets:
        overrides = {"teacher": {"initialise": "random"}} if options.random else {}
        config = api.resolve_config("distill", preset=name, overrides=overrides, settings=options.set, manager=manager)
        for line in rows(name, config, manager, options.train, options.errors):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
