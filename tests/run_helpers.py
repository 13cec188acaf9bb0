"""Small runs, and how tests start them: the command line in this process, and several processes of it."""

import json
import os
import subprocess
import sys

from freeflow_cli.main import build_app
from typer.testing import CliRunner

from freeflow_core.plugin import Manager

TINY = {
    "teacher": {"name": "gaussian-mixture", "layout": "ring"},
    "student": {"name": "mlp", "width": 16, "depth": 1},
    "objective": {"name": "freeflow", "weight_power": 0.5},
    "training": {"images": 160, "batch_size": 16, "optimizer": {"learning_rate": 1e-3}},
    "logging": {"every_images": 32},
    "evaluation": {"enabled": False},
    "runtime": {"device": "cpu", "threads": 1},
}
"""A run that exercises the whole engine in a second: an exact mixture teacher and an MLP student."""

VOLATILE = ("time", "images_per_second", "memory_gib", "ms_per_image", "_percentage")
"""How the names end of what the clock and the machine decide."""

TINY_SIT = {
    "name": "sit", "initialise": "random", "depth": 1, "width": 32, "num_heads": 2, "patch_size": 8, "num_classes": 10,
}  # fmt: skip
"""A transformer teacher of random weights: 16 tokens."""


def freeflow(*arguments, exit_code=0, manager=None):
    """``freeflow ...`` in this process, with all plugins. ``exit_code`` None: whatever it is."""
    result = CliRunner().invoke(build_app(manager or Manager.load()), [str(argument) for argument in arguments])
    assert exit_code in (None, result.exit_code), f"{result.output}\n{result.exception!r}"
    return result


def sets(*settings):
    """``--set`` before each."""
    return [part for setting in settings for part in ("--set", setting)]


def processes(number, *arguments):
    """Start Python with ``arguments``, one thread a process: by itself, or ``number`` of them under ``torchrun``."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
    return subprocess.Popen(
        [sys.executable, *(launcher if number > 1 else ()), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(process, timeout=240):
    """Wait for its end, which must be a good one; what it printed."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err[-3000:]
    return out


def records(run, kind=""):
    """All that a run told but :data:`VOLATILE`: metrics (of a ``kind``, by how names begin), pictures and files."""
    files = [run / name for name in ("metrics.jsonl", "artifacts.jsonl")]
    lines = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.endswith(VOLATILE)}
        for line in lines
        if "path" in line or any(name.startswith(kind) for name in line)
    ]
