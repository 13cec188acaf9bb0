"""Samples per second as the tool draws and writes them, over the network passes that they need.

python benchmarks/sampling.py [--teacher digits] [--num 2000] [--batch-size 250] [--turns 5]
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from freeflow_core.config import ComponentChoice, RuntimeConfig
from freeflow_core.engine.build import Builder
from freeflow_core.engine.process import choose_device
from freeflow_core.evaluation.sampling import Generator
from freeflow_core.evaluation.student_file import StudentFile
from freeflow_core.interfaces import Student
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.sample_files.files import sample_format
from freeflow_core.tools.sample_files.sample import PreparedSamples, SampleRequest
from freeflow_core.tools.sample_files.writer import SampleWriter, Team

TEACHER_STEPS = 25
"""Of Heun: two passes each."""


def prepare(
    registry: Registry, teacher: str, device: torch.device, guidance: float, of_student: bool
) -> PreparedSamples:
    """A teacher's many steps, or one step of a student with its weights."""
    file = None
    if of_student:
        builder = Builder(registry, device, seed=0)
        built = builder.teacher(ComponentChoice(name=teacher))
        student = builder.build("student", ComponentChoice(name="transformer"), teacher=built)
        codec = ComponentChoice(name=built.codec or "pixels")
        file = StudentFile(student.eval(), ComponentChoice(name=teacher), codec, {})
    request = SampleRequest(
        num=0,
        student=file,
        teacher=None if of_student else teacher,
        sampler=None,
        steps=None if of_student else TEACHER_STEPS,
        guidance_weight=guidance,
        guidance_interval=(0.0, 1.0),
        jump_to=0.5,
        labels="balanced",
        seed=0,
        precision="float32",
        assignments=(),
    )
    return PreparedSamples(request, registry, device)


def passes(generator: Generator, num: int, size: int) -> Callable[[], None]:
    """What samples cannot be had without: the network, as often as the sampler calls it, and the codec."""
    network: Any = generator.networks[0]
    like = next(network.parameters())
    x = torch.randn(size, *generator.sample_shape, device=like.device)
    t, labels = torch.rand(size, device=like.device), torch.arange(size, device=like.device) % network.num_classes
    evaluations = round(generator.batch(torch.arange(2)).num_evaluations)

    @torch.no_grad()
    def run() -> None:
        for _ in range(num // size):
            for _ in range(evaluations):
                network(x, t, t, labels, t) if isinstance(network, Student) else network.velocity(x, t, labels)
            generator.codec.decode(x)
        if like.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def stages(samples: PreparedSamples, num: int, size: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name: each draws ``num`` samples, ``size`` at a time."""
    generator = samples.generator
    kind, team = sample_format("npz", generator.sample_shape), Team(choose_device(RuntimeConfig()))

    def written() -> None:
        with tempfile.TemporaryDirectory() as folder:
            SampleWriter(Path(folder) / "s", num, kind, dict, size, team).write(generator)

    return {
        "passes": passes(generator, num, size),
        "drawn": lambda: [batch.images.cpu() for batch in generator.batches(0, num, size)],
        "written": written,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="digits")
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    registry, device = Registry(Manager.load()), choose_device(RuntimeConfig())
    print("| samples | images/s | drawn / passes | written / passes |\n|---|---|---|---|")
    for what, of_student, guidance, share in (
        ("student, 1 step", True, 1.0, 1),
        (f"teacher, {TEACHER_STEPS} steps of Heun", False, 1.0, 10),
        ("the same, guided", False, 1.5, 20),
    ):
        num = options.batch_size * max(1, options.num // (share * options.batch_size))
        timed = stages(prepare(registry, options.teacher, device, guidance, of_student), num, options.batch_size)
        now = time.perf_counter if device.type == "cuda" else time.process_time  # of this process, on a busy machine
        turns = []
        for _ in range(1 + options.turns):
            marks = [now()]
            for function in timed.values():
                function()
                marks.append(now())
            turns.append(dict(zip(timed, (b - a for a, b in itertools.pairwise(marks)), strict=True)))
        del turns[0]
        ratios = {name: median(turn["passes"] / turn[name] for turn in turns) for name in ("drawn", "written")}
        rate = num / median(turn["written"] for turn in turns)
        print(f"| {what} | {rate:.4g} | {ratios['drawn']:.0%} | {ratios['written']:.0%} |", flush=True)


if __name__ == "__main__":
    main()
