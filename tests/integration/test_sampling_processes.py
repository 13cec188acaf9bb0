"""Sampling by real processes: two at once, killed ones, failing ones."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from freeflow_cli.main import build_app
from typer.testing import CliRunner

from freeflow_core.plugin import Manager

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SAMPLE = ["-m", "freeflow_cli", "sample", "--teacher", "digits", "--format", "npz", "--labels", "random"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def start(command: list[str], output: Path, *arguments: object) -> subprocess.Popen[str]:
    line = [*command, *map(str, arguments), "--output", str(output)]
    return subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err[-3000:]
    return out + err


def wait_for_blocks(output: Path, process: subprocess.Popen[str], number: int) -> None:
    end = time.monotonic() + 200
    while len(list(output.glob("parts/block-*.npz"))) < number:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.01)


def here(output: Path, *arguments: object) -> str:
    """The same command in this process, which has torch in memory already."""
    line = [*SAMPLE[2:], *map(str, arguments), "--output", str(output)]
    result = CliRunner().invoke(build_app(Manager.load()), line)
    assert result.exit_code == 0, result.output
    return result.output


def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_bytes(tmp_path):
    slow = ("-n", 448, "--steps", 12, "--batch-size", 16)
    process = start([sys.executable, *SAMPLE], tmp_path / "killed", *slow)
    wait_for_blocks(tmp_path / "killed", process, 2)
    process.kill()
    process.communicate()
    kept = len(list((tmp_path / "killed").glob("parts/block-*.npz")))
    assert 2 <= kept < 7
    assert f"{64 * kept} of them were there already" in here(tmp_path / "killed", *slow)
    here(tmp_path / "whole", *slow)
    assert (tmp_path / "killed" / "samples.npz").read_bytes() == (tmp_path / "whole" / "samples.npz").read_bytes()


def test_two_processes_draw_the_same_samples_as_one(tmp_path):
    arguments = ("-n", 200, "--steps", 4)
    finish(start([*TORCHRUN, *SAMPLE], tmp_path / "two", *arguments, "--batch-size", 7))
    here(tmp_path / "one", *arguments, "--batch-size", 64)
    with np.load(tmp_path / "one" / "samples.npz") as one, np.load(tmp_path / "two" / "samples.npz") as two:
        assert np.array_equal(one["arr_1"], two["arr_1"])
        assert np.abs(one["arr_0"].astype(int) - two["arr_0"]).max() <= 1
        assert one["arr_0"].std() > 20
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["samples.json", "samples.npz"]
