"""A process of a run that dies: the others end within seconds, and say which it was."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from accelerate.state import AcceleratorState, PartialState
from run_helpers import sets

from freeflow_core import api
from freeflow_core.config import to_yaml
from freeflow_core.engine.peers import Peers
from freeflow_core.engine.process import start_accelerator
from freeflow_core.errors import ConfigError, FreeflowError

CLOSED = "[gloo/transport/tcp/pair.cc:537] Connection closed by peer [10.0.0.2]:1"
LAUNCHED = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def start(number, *arguments):
    """Processes of a command that know of each other, without a launcher that would end them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "freeflow_cli", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(number)
    ]  # fmt: skip


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("there", ["checkpoints/images-*", pytest.param("run.json", marks=pytest.mark.long)])
def test_one_of_two_that_is_killed_ends_the_other_which_names_it(tiny, tmp_path, there):
    config, output = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(to_yaml(tiny("training.images=10000000", "checkpointing.every_images=1600")))
    first, second = processes = start(2, "distill", "--config", config, "--output", output)
    try:
        until = time.monotonic() + 120
        while not list(output.glob(there)):
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < until
            time.sleep(0.1)
        second.kill()
        _, told = first.communicate(timeout=15)
    finally:
        for process in processes:
            process.kill()
    assert first.returncode == 1, told
    assert f"process 1 (pid {second.pid} on " in told
    assert "--resume" in told
    assert "Unexpected error" not in told
    assert json.loads((output / "run.json").read_text())["status"] == "failed"


class Two:
    """The first of two processes."""

    num_processes, is_main_process = 2, True


@pytest.mark.parametrize(
    ("others", "told"),
    [(("elsewhere", 1), "on elsewhere is gone"), ((socket.gethostname(), os.getpid()), "all are there")],
)
def test_a_process_that_cannot_be_seen_is_told_by_its_machine(monkeypatch, others, told):
    monkeypatch.setattr("freeflow_core.engine.peers.from_each", lambda process, values: [*values, others])
    monkeypatch.setattr("freeflow_core.engine.peers._PATIENCE", 0.0)
    with pytest.raises(FreeflowError, match=told), Peers(Two()).watched(lambda: ""):
        raise RuntimeError(CLOSED)


def test_other_errors_stay_what_they_are(monkeypatch):
    monkeypatch.setattr("freeflow_core.engine.peers.from_each", lambda process, values: values * 2)
    with pytest.raises(RuntimeError, match="shapes"), Peers(Two()).watched(lambda: ""):
        raise RuntimeError("shapes do not fit")


@pytest.fixture
def gone(monkeypatch):
    """A second process of whatever is done here, which has ended; how it is to be named."""
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as other:
        pass
    here = socket.gethostname(), other.pid
    monkeypatch.setattr("freeflow_core.engine.peers.from_each", lambda process, values: [*values, here])
    return rf"process 1 \(pid {other.pid} on "


def closed(*given, **named):
    raise RuntimeError(CLOSED)


@pytest.mark.parametrize("place", ["build_state", "Trainer"])
def test_a_process_that_dies_before_training_is_named(gone, monkeypatch, tiny, tmp_path, manager, place):
    monkeypatch.setattr(f"freeflow_core.engine.run.{place}", closed)
    output = tmp_path / "run"
    with pytest.raises(FreeflowError, match=gone):
        api.distill(tiny(), output=output, manager=manager)
    if place == "Trainer":
        assert json.loads((output / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("work", [api.evaluate, api.search])
def test_a_process_that_dies_in_an_evaluation_or_search_is_named(gone, monkeypatch, tiny, tmp_path, manager, work):
    monkeypatch.setattr("freeflow_core.api.scoring.load_student", closed)
    with pytest.raises(FreeflowError, match=gone):
        work(tiny(), student=tmp_path, manager=manager)


def test_a_process_that_dies_as_latents_are_encoded_is_named(gone, monkeypatch, tmp_path, manager):
    monkeypatch.setattr("freeflow_core.tools.encode.Builder", closed)
    with pytest.raises(FreeflowError, match=gone):
        api.encode(source="mnist", codec="pixels", output=tmp_path, device="cpu", manager=manager)


@pytest.fixture
def launched(monkeypatch):
    """An environment of no launcher, in a process that has not met others yet; sets variables."""
    for name in LAUNCHED:
        monkeypatch.setenv(name, "")  # so that what is set meanwhile goes again
        monkeypatch.delenv(name)
    for state in (PartialState, AcceleratorState):
        monkeypatch.setattr(state, "_shared_state", {})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return lambda **named: [monkeypatch.setenv(name, value) for name, value in named.items()]


def test_processes_that_do_not_come_are_missed(launched, tiny):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launched(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    with pytest.raises(FreeflowError, match="expected 2 processes") as told:
        start_accelerator(tiny("runtime.timeout_seconds=0.1").runtime)
    assert "runtime.timeout_seconds" in str(told.value)
    assert f"127.0.0.1:{port}" in str(told.value)


def test_a_number_of_processes_that_is_none_is_refused(launched, tiny):
    launched(WORLD_SIZE="two")
    with pytest.raises(ConfigError, match="two"):
        start_accelerator(tiny().runtime)


def test_an_environment_of_half_a_launcher_is_refused(launched, tiny):
    launched(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_PORT="29500")
    with pytest.raises(ConfigError, match="torchrun") as told:
        start_accelerator(tiny().runtime)
    assert "MASTER_ADDR" in str(told.value)
    assert "LOCAL_RANK" not in str(told.value)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system has no SIGSTOP")
@pytest.mark.parametrize("sharding", ["none", "full", "hybrid"])
def test_a_process_that_is_stuck_ends_the_others_after_the_timeout(tiny, tmp_path, sharding):
    config, output = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(to_yaml(tiny("training.images=10000000", "checkpointing.every_images=1600")))
    settings = sets("runtime.timeout_seconds=12", f"runtime.sharding={sharding}")
    settings += sets("runtime.shard_size=2") if sharding == "hybrid" else []
    *others, stuck = processes = start(4, "distill", "--config", config, "--output", output, *settings)
    try:
        until = time.monotonic() + 240
        while not list(output.glob("checkpoints/images-*")):
            assert stuck.poll() is None, stuck.communicate()
            assert time.monotonic() < until
            time.sleep(0.1)
        stuck.send_signal(signal.SIGSTOP)
        until = time.monotonic() + 60
        told = [other.communicate(timeout=until - time.monotonic())[1] for other in others]
    finally:
        for process in processes:
            process.kill()
    assert [other.returncode for other in others] == [1, 1, 1], told
    assert not any("Unexpected error" in each for each in told), told
    assert json.loads((output / "run.json").read_text())["status"] == "failed"
