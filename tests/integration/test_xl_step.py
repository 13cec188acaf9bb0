"""The benchmark of the large recipes: on a tiny network it gives every number, and gives each network its own time."""

import json
import time
from pathlib import Path

import pytest
import torch

NUMBERS = ("seconds per step", "images per second", "peak memory, GiB", "planned memory, GiB", "operations per second")


@pytest.fixture
def xl_step(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    import xl_step

    return xl_step


def run(xl_step, tmp_path, *arguments):
    tiny = ("depth=1", "width=32", "num_heads=2", "patch_size=8", "num_classes=10")
    status = xl_step.main(
        [
            *("--device", "cpu", "--batch", "8", "--steps", "2", "--warmup", "0", "--matrix", "64"),
            *(part for option in tiny for part in ("--set", f"teacher.{option}")),
            *("--json", str(tmp_path / "numbers.json"), *arguments),
        ]
    )
    assert status == 0
    return json.loads((tmp_path / "numbers.json").read_text())


def test_every_number_comes_out(xl_step, tmp_path, capsys):
    found = run(xl_step, tmp_path, "--modes", "eager", "--set", "runtime.precision=float32")
    assert list(found["variants"]) == ["forward-mode, eager", "central, eager"]
    for numbers in found["variants"].values():
        assert all(numbers[name] > 0 for name in NUMBERS)
        assert numbers["images per second"] == pytest.approx(8 / numbers["seconds per step"])
        assert all(0 < share < 1 for share in numbers["shares"].values())
        assert sum(numbers["shares"].values()) == pytest.approx(1, abs=0.1)  # medians, each by itself
    printed = capsys.readouterr().out
    assert "| achieved TFLOP/s |" in printed
    assert "batch 8, float32" in printed
    assert len({line.count("|") for line in printed.splitlines() if line.startswith("|")}) == 1


@pytest.mark.long
def test_the_compiled_step_in_bf16_is_measured_too(xl_step, tmp_path):
    found = run(xl_step, tmp_path, "--modes", "compiled", "--derivatives", "forward-mode")
    assert found["variants"]["forward-mode, compiled"]["shares"]["teacher"] > 0


class Slow(torch.autograd.Function):
    """Takes a tenth of a second forward and two backward."""

    @staticmethod
    def forward(ctx, x):
        time.sleep(0.1)
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(0.2)
        return 2 * gradient


def test_time_goes_to_the_network_that_takes_it(xl_step):
    tape = xl_step.Tape(torch.device("cpu"))
    slow = xl_step.TimedNetwork(Slow.apply, xl_step.STUDENT, tape)
    fast = xl_step.TimedNetwork(lambda x: 3 * x, xl_step.FAKE_VELOCITY, tape)
    accelerator = xl_step.TimedAccelerator(type("Plain", (), {"backward": lambda self, loss: loss.backward()})(), tape)
    x = torch.ones(2, requires_grad=True)
    tape.mark(xl_step.OTHER)
    accelerator.backward((slow(x) + fast(x)).sum())
    time.sleep(0.05)
    tape.mark(xl_step.OTHER)
    seconds = tape.read()
    assert seconds[xl_step.STUDENT] > 0.3
    assert seconds[xl_step.UPDATE] > 0.05
    assert sum(seconds.values()) - seconds[xl_step.STUDENT] - seconds[xl_step.UPDATE] < 0.1


def test_a_mistake_is_a_sentence(xl_step, capsys):
    assert xl_step.main(["--device", "cpu", "--set", "teacher.depht=1"]) == 2
    assert "depth" in capsys.readouterr().err
