"""Two processes train as one does, to rounding; and a run may change their number when it goes on."""

import json

import torch
from run_helpers import finish, processes

from freeflow_core import api
from freeflow_core.config import to_yaml
from freeflow_core.network_file import load_tensors

WATCHED = """
import atexit, os, sys
from pathlib import Path

def note_threads():  # registered first, so called last
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text().strip() for task in tasks.iterdir()] if tasks.is_dir() else []
    Path(sys.argv[0]).with_name(f"threads-{os.environ['RANK']}").write_text("\\n".join(names))

atexit.register(note_threads)
from freeflow_cli.main import main
main()
"""


def launch(config, output, *extra):
    """``torchrun`` with two processes on the CPU, which note the threads that they leave to the end."""
    script = config.with_name("watched.py")
    script.write_text(WATCHED, "utf-8")
    finish(processes(2, script, "distill", "--config", config, "--output", output, *extra))
    assert json.loads((output / "run.json").read_text())["status"] in ("finished", "stopped")
    for rank in range(2):  # a thread of gloo's that is left to the C++ teardown aborts the process now and then
        assert "gloo" not in script.with_name(f"threads-{rank}").read_text("utf-8")


def weights(folder, name):
    return load_tensors(max((folder / "checkpoints").iterdir()) / f"{name}.safetensors")[0]


def test_two_processes_equal_one(tiny, tmp_path, manager):
    settings = ("runtime.precision=float64", "training.images=128")
    config = tmp_path / "tiny.yaml"
    config.write_text(to_yaml(tiny(*settings)))
    one = api.distill(tiny(*settings), output=tmp_path / "one", manager=manager).folder
    launch(config, tmp_path / "two", "--set", "training.stop_at_images=64")
    api.distill(tiny(*settings), output=tmp_path / "two", resume=True, manager=manager)
    for name in ("student", "student.ema", "fake_velocity"):
        expected, found = weights(one, name), weights(tmp_path / "two", name)
        start = max(float(v.abs().max()) for v in expected.values())
        assert start > 0
        for key, value in expected.items():
            assert torch.allclose(value, found[key], atol=1e-10), f"{name} {key}"
