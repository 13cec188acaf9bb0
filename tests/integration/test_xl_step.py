"""The benchmark of the large recipes: on a tiny network it gives every number, and gives each network its own time."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from run_helpers import TINY_SIT, finish, processes, sets
from torch.nn.modules.module import register_module_forward_pre_hook

from freeflow_core import api
from freeflow_core.config import load_run_config
from freeflow_core.interfaces import Student, Teacher
from freeflow_core.tools.cost.rate import fresh_trainer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NUMBERS = ("seconds per step", "images per second", "peak memory, GiB", "planned memory, GiB", "operations per second")


@pytest.fixture
def xl_step(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import xl_step

    return xl_step


SMALL = (
    *("--device", "cpu", "--steps", "2", "--warmup", "0", "--matrix", "64"),
    *sets("teacher.depth=1", "teacher.width=32", "teacher.num_heads=2", "teacher.patch_size=8"),
    *sets("teacher.num_classes=10"),
)


def run(xl_step, tmp_path, *arguments):
    assert xl_step.main([*SMALL, "--batch", "8", "--json", str(tmp_path / "numbers.json"), *arguments]) == 0
    return json.loads((tmp_path / "numbers.json").read_text())


def test_every_number_comes_out(xl_step, tmp_path, capsys, monkeypatch):
    measure, products = xl_step.measure, []

    def noting(*given, **options):
        products.append(torch.get_float32_matmul_precision())
        return measure(*given, **options)

    monkeypatch.setattr(xl_step, "measure", noting)
    found = run(xl_step, tmp_path, "--modes", "eager", "--set", "runtime.precision=float32")
    assert list(found["variants"]) == ["forward-mode, eager", "central, eager"]
    for numbers in found["variants"].values():
        assert all(numbers[name] > 0 for name in NUMBERS)
        assert numbers["images per second"] == pytest.approx(8 / numbers["seconds per step"])
        assert all(0 < share < 1 for share in numbers["shares"].values())
        assert sum(numbers["shares"].values()) == pytest.approx(1, abs=0.1)  # medians, each by itself
    assert products == ["high", "high"]  # as the preset says
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


class Plain(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


class Backward:
    def backward(self, loss):
        loss.backward()


@pytest.mark.parametrize("passes", [1, 2])
def test_time_goes_to_the_network_that_takes_it(xl_step, passes):
    tape = xl_step.Tape(torch.device("cpu"))
    slow, fast = Plain(Slow.apply), Plain(lambda x: 3 * x)
    accelerator = xl_step.TimedAccelerator(Backward(), tape)
    x = torch.ones(2, requires_grad=True)
    with xl_step.timed({"student": slow, "fake_velocity": fast}, None, tape):
        tape.mark(xl_step.OTHER)
        for _ in range(passes):
            time.sleep(0.05)
            accelerator.backward((slow(x) + fast(x)).sum())
        time.sleep(0.15)
        tape.mark(xl_step.OTHER)
    seconds = tape.read()
    slow(x), fast(x)
    assert not sum(tape.read().values())  # outside of the block nothing is marked
    assert seconds[xl_step.STUDENT] > 0.3 * passes
    assert seconds[xl_step.UPDATE] > 0.15
    assert seconds[xl_step.OTHER] > 0.05 * passes
    assert seconds[xl_step.FAKE_VELOCITY] < 0.1


class Slower(Teacher):
    def velocity(self, x_t, t, condition):
        time.sleep(0.05)
        return x_t

    def null_condition(self, condition):
        time.sleep(0.05)
        return condition


def test_a_guided_call_of_the_teacher_is_its_time_from_beginning_to_end(xl_step):
    tape, teacher = xl_step.Tape(torch.device("cpu")), Slower()
    with xl_step.timed({}, teacher, tape):
        tape.mark(xl_step.OTHER)
        teacher.guided_velocity(torch.ones(2, 1), torch.ones(2), None, torch.full((2,), 2.0))
        teacher.velocity(torch.ones(2, 1), torch.ones(2), None)
        tape.mark(xl_step.OTHER)
    seconds = tape.read()
    assert seconds[xl_step.TEACHER] > 0.15
    assert not vars(teacher).keys() & {"velocity", "guided_velocity"}


def rows_through(work):
    """Rows of all calls of networks by ``work``, with and without gradient, and what it returns."""
    rows = Counter()

    def count(module, inputs):
        if isinstance(module, Student):
            rows[type(module).__name__, torch.is_grad_enabled()] += len(inputs[0])

    handle = register_module_forward_pre_hook(count)
    try:
        return rows, work()
    finally:
        handle.remove()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_steps_that_are_timed_are_those_of_a_run(xl_step, registry, monkeypatch, accumulation):
    overrides = {
        "teacher": TINY_SIT, "student": "transformer", "codec": "states", "samples": {"per_class": 1},
        "objective": {"name": "freeflow", "derivative": "central", "guidance_max": 2.0}, "trackers": [],
        "training": {"images": 64, "batch_size": 16, "accumulation": accumulation},
        "runtime": {"device": "cpu", "precision": "float64"},
    }  # fmt: skip
    config = load_run_config(registry, "distill", overrides=overrides)
    states, build_state = [], xl_step.build_state
    monkeypatch.setattr(xl_step, "build_state", lambda *given: states.append(build_state(*given)) or states[-1])
    timed_rows, numbers = rows_through(lambda: xl_step.measure(config, registry, steps=2, warmup=1))
    trainer = fresh_trainer(config, registry)
    rows, _ = rows_through(lambda: [trainer.step() for _ in range(4)])
    assert timed_rows == rows
    for name, tensors in trainer.state.tensors().items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, states[0].tensors()[name][key]), (name, key)
    assert all(0 < share < 1 for share in numbers["shares"].values())


@pytest.mark.long
def test_two_processes_give_one_table(registry, tmp_path):
    path = tmp_path / "numbers.json"
    arguments = (*SMALL, "--batch", "16", "--modes", "eager", "--derivatives", "central", "--json", path)
    out = finish(processes(2, BENCHMARKS / "xl_step.py", *arguments, "--sharding", "none", "full"))
    found = json.loads(path.read_text())
    copies, divided = found["variants"].values()
    assert len([line for line in out.splitlines() if line.startswith("| ---")]) == 1
    assert "2 processes" in out
    assert list(found["variants"]) == ["central, eager, sharding none", "central, eager, sharding full"]
    overrides = {"teacher": {"initialise": "random"}, "runtime": {"device": "cpu"}, "training": {"batch_size": 16}}
    tiny = [setting for setting in SMALL if setting.startswith("teacher.")]
    for numbers, sharding in ((copies, "none"), (divided, "full")):
        settings = [*tiny, "objective.derivative=central", f"runtime.sharding={sharding}"]
        config = load_run_config(
            registry, "distill", preset="sit-repa-xl2-256", overrides=overrides, assignments=settings
        )
        plan = api.plan(config, num_processes=2)
        assert numbers["planned memory, GiB"] == pytest.approx(plan.peak / 2**30)
        assert numbers["operations per step"] == plan.flops_per_step
        assert all(0 < share < 1 for share in numbers["shares"].values())
        share = numbers["operations per second"] / found["matrix rate"]
        assert f"{share:.1%}" in next(line for line in out.splitlines() if "measured matrix rate" in line)
    assert divided["planned memory, GiB"] < copies["planned memory, GiB"]


ONE_RUNS_OUT = """
import os, sys, torch, xl_step

measure, measured = xl_step.measure, []

def failing(*given, **options):
    measured.append(given)
    if os.environ["RANK"] == "1" and len(measured) == 2:
        raise torch.OutOfMemoryError
    return measure(*given, **options)

xl_step.measure = failing
sys.exit(xl_step.main())
"""


@pytest.mark.long
def test_a_process_out_of_memory_ends_all_and_what_was_measured_stays(tmp_path, monkeypatch):
    path, script = tmp_path / "numbers.json", tmp_path / "run.py"
    script.write_text(ONE_RUNS_OUT)
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS))
    arguments = (*SMALL, "--batch", "16", "--modes", "eager", "--derivatives", "central", "--json", path)
    launched = processes(2, script, *arguments, "--sharding", "none", "full")
    _, err = launched.communicate(timeout=120)
    assert launched.returncode != 0
    assert "memory of process 1" in err
    assert list(json.loads(path.read_text())["variants"]) == ["central, eager, sharding none"]


def test_sharding_without_a_launcher_is_refused(xl_step, capsys):
    with pytest.raises(SystemExit):
        xl_step.main([*SMALL, "--sharding", "full"])
    assert "torchrun" in capsys.readouterr().err


def test_a_mistake_is_a_sentence(xl_step, capsys):
    assert xl_step.main(["--device", "cpu", "--set", "teacher.depht=1"]) == 2
    assert "depth" in capsys.readouterr().err
