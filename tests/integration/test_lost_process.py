"""A process of a run that dies: the others end within seconds, and say which it was."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from freeflow_core.config import to_yaml
from freeflow_core.engine.peers import Peers
from freeflow_core.errors import FreeflowError


def start_two(*arguments):
    """Two processes of a command that know of each other, without a launcher that would end them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "freeflow_cli", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_one_of_two_that_is_killed_ends_the_other_which_names_it(tiny, tmp_path):
    config, output = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(to_yaml(tiny("training.images=10000000", "checkpointing.every_images=1600")))
    first, second = processes = start_two("distill", "--config", config, "--output", output)
    try:
        until = time.monotonic() + 120
        while not list(output.glob("checkpoints/images-*")):
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
    with pytest.raises(FreeflowError, match=told), Peers(Two()).watched(lambda: None):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer [10.0.0.2]:1")


def test_other_errors_stay_what_they_are(monkeypatch):
    monkeypatch.setattr("freeflow_core.engine.peers.from_each", lambda process, values: values * 2)
    with pytest.raises(RuntimeError, match="shapes"), Peers(Two()).watched(lambda: None):
        raise RuntimeError("shapes do not fit")
