"""How long a step waits for its noise: drawn within the step, and by a thread beside the step before.

A pause stands for the step itself: what a GPU computes meanwhile.
"""

import argparse
import statistics
import time

import torch

from freeflow_core.math.random import Lookahead, PhiloxDraws


def waits(shape: tuple[int, ...], batch: int, steps: int, pause: float, lookahead: Lookahead | None) -> list[float]:
    """Milliseconds of each step."""
    found = []
    for step in range(steps):
        began = time.perf_counter()
        PhiloxDraws(0, torch.arange(batch) + batch * step, lookahead=lookahead).noise("prior", shape)
        found.append(1e3 * (time.perf_counter() - began))
        time.sleep(pause)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--shape", type=int, nargs="+", default=[4, 32, 32])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds")
    given = parser.parse_args()
    for name, lookahead in (("in the step", None), ("beside the step before", Lookahead(given.batch))):
        ms = waits(tuple(given.shape), given.batch, given.steps, given.pause, lookahead)[1:]
        print(f"{name:>24}: {statistics.median(ms):.1f} ms, at most {max(ms):.1f}")
