"""How the training step grows with batch, depth, width and tokens, and with processes: each with its fitted power.

python benchmarks/growth.py [--turns 3] [--sizes depth width] [--processes 1 2 4]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from freeflow_core.config import RunConfig, load_run_config
from freeflow_core.engine.trainer import Trainer
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.cost.rate import fresh_trainer

BASE = {"batch": 16, "depth": 4, "width": 128, "tokens": 64}
GROWTH = {"batch": (8, 16, 32, 64), "depth": (2, 4, 8, 16), "width": (64, 128, 256, 512), "tokens": (16, 64, 256)}
EXPECTED = {"batch": 1, "depth": 1, "width": 2, "tokens": 1}
"""Powers of the operations in the linear layers, which all but attention's and the fixed costs are."""
_STEPS, _SIDE = 4, 32


def configured(registry: Registry, batch: int, depth: int, width: int, tokens: int) -> RunConfig:
    """FreeFlow on a SiT of random weights, on latents of 4 x 32 x 32."""
    patch = round(_SIDE / tokens**0.5)
    teacher = {"name": "sit", "initialise": "random", "depth": depth, "width": width, "num_heads": 4}
    overrides = {
        "teacher": {**teacher, "patch_size": patch, "num_classes": 10},
        "objective": {"name": "freeflow", "derivative": "central"},
        "training": {"images": 10**6, "batch_size": batch},
        "runtime": {"device": "cpu", "threads": 1},
        "evaluation": {"enabled": False},
        "trackers": [],
        "student": "transformer",
        "source": "prior",
        "name": "growth",
    }
    return load_run_config(registry, "distill", overrides=overrides)


def power(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """p of seconds ~ size^p by least squares of the logarithms, and of the last two sizes alone."""
    slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
    last = np.log(seconds[-1] / seconds[-2]) / np.log(sizes[-1] / sizes[-2])
    return float(slope), float(last)


def turns_seconds(trainer: Trainer, turns: int, clock: Callable[[], float]) -> list[float]:
    """Of one step, once a turn after an untimed one; the processes of a launcher begin and end a turn together."""
    found = []
    for _ in range(1 + turns):
        trainer.accelerator.wait_for_everyone()
        before = clock()
        for _ in range(_STEPS):
            trainer.step()
        trainer.read_metrics()
        trainer.accelerator.wait_for_everyone()
        found.append((clock() - before) / _STEPS)
    return found[1:]


def sizes_table(registry: Registry, names: Sequence[str], turns: int) -> None:
    """Print how a step grows with each size that is named, the others as in BASE."""
    print("| size | values | ms per step | power, fitted | between the last two | of the operations |")
    print("|---|---|---|---|---|---|")
    for name in names:
        sizes, seconds = GROWTH[name], []
        for size in sizes:
            trainer = fresh_trainer(configured(registry, **(BASE | {name: size})), registry)
            seconds.append(median(turns_seconds(trainer, turns, time.process_time)))
        fitted, last = power(sizes, seconds)
        times = ", ".join(f"{1e3 * value:.3g}" for value in seconds)
        values = ", ".join(map(str, sizes))
        print(f"| {name} | {values} | {times} | {fitted:.2f} | {last:.2f} | {EXPECTED[name]} |", flush=True)


def one_process(batch: int) -> None:
    """What each process of a launcher runs: images a second of all together, from rank 0."""
    registry = Registry(Manager.load())
    trainer = fresh_trainer(configured(registry, **(BASE | {"batch": batch})), registry)
    seconds = median(turns_seconds(trainer, 3, time.perf_counter))
    if trainer.accelerator.is_main_process:
        print(json.dumps({"rate": batch / seconds}))


def launched(processes: int, batch: int) -> float:
    """Images a second of ``processes`` together, one thread each."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [sys.executable, *(command if processes > 1 else ()), __file__, "--rank-of", str(batch)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return float(found["rate"])


def processes_table(numbers: Sequence[int], turns: int) -> None:
    """Print strong scaling, one batch for all, and weak scaling, one batch each, in turns."""
    cores = os.cpu_count()
    print(f"\n| processes on {cores} cores | images/s, batch 64 in all | efficiency | batch 16 each | efficiency |")
    print("|---|---|---|---|---|")
    rates: dict[tuple[int, int], list[float]] = {}
    for _ in range(turns):
        for number in numbers:
            for batch in (64, 16 * number):
                rates.setdefault((number, batch), []).append(launched(number, batch))
    middle = {key: median(found) for key, found in rates.items()}
    first = numbers[0]
    for number in numbers:
        strong, weak = middle[number, 64], middle[number, 16 * number]
        shares = strong / middle[first, 64] * first / number, weak / middle[first, 16 * first] * first / number
        print(f"| {number} | {strong:.1f} | {shares[0]:.0%} | {weak:.1f} | {shares[1]:.0%} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sizes", nargs="*", default=list(GROWTH), choices=list(GROWTH))
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--rank-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        one_process(options.rank_of)
        return
    logging.getLogger("freeflow").setLevel(logging.ERROR)  # random weights have no codec, and need none
    if options.sizes:
        sizes_table(Registry(Manager.load()), options.sizes, options.turns)
    if options.processes:
        processes_table(options.processes, options.turns)


if __name__ == "__main__":
    main()
