"""Sampling by real processes: two at once, killed ones, failing ones."""

import time

import numpy as np
import pytest
from run_helpers import finish, freeflow, processes

SAMPLE = ("sample", "--teacher", "digits", "--format", "npz", "--labels", "random")


def wait_for_blocks(output, process, number):
    end = time.monotonic() + 200
    while len(list(output.glob("parts/block-*.npz"))) < number:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.long
def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_bytes(tmp_path):
    slow = ("-n", 448, "--steps", 12, "--batch-size", 16)
    process = processes(1, "-m", "freeflow_cli", *SAMPLE, *slow, "--output", tmp_path / "killed")
    wait_for_blocks(tmp_path / "killed", process, 2)
    process.kill()
    process.communicate()
    kept = len(list((tmp_path / "killed").glob("parts/block-*.npz")))
    assert 2 <= kept < 7
    assert f"{64 * kept} of them were there already" in freeflow(*SAMPLE, *slow, "--output", tmp_path / "killed").output
    freeflow(*SAMPLE, *slow, "--output", tmp_path / "whole")
    assert (tmp_path / "killed" / "samples.npz").read_bytes() == (tmp_path / "whole" / "samples.npz").read_bytes()


def test_two_processes_draw_the_same_samples_as_one(tmp_path):
    arguments = (*SAMPLE, "-n", 200, "--steps", 4)
    two = ("--batch-size", 7, "--output", tmp_path / "two")
    finish(processes(2, "-m", "freeflow_cli", *arguments, *two))
    freeflow(*arguments, "--batch-size", 64, "--output", tmp_path / "one")
    with np.load(tmp_path / "one" / "samples.npz") as one, np.load(tmp_path / "two" / "samples.npz") as two:
        assert np.array_equal(one["arr_1"], two["arr_1"])
        assert np.abs(one["arr_0"].astype(int) - two["arr_0"]).max() <= 1
        assert one["arr_0"].std() > 20
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["samples.json", "samples.npz"]
