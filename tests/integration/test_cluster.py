"""The scripts for several machines as the page shows them, on this one: two launchers, and stand-ins for SLURM."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from compare_support import BASE

from freeflow_core import api
from freeflow_core.config import to_yaml
from freeflow_core.network_file import load_tensors

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "many-processes.md"
SCRIPTS = dict(re.findall(r'^```slurm title="(\S+)"\n(.*?)^```$', PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL))

SBATCH = """#!{python}
import os, re, subprocess, sys, time
from pathlib import Path
script, arguments = sys.argv[1], sys.argv[2:]
directives = " ".join(re.findall("^#SBATCH (.*)$", Path(script).read_text(), re.M))
nodes = re.search(r"--nodes=(\\d+)", directives)
array = re.search(r"--array=(\\d+)-", directives)
base = dict(os.environ, SLURM_NNODES=nodes[1] if nodes else "1", SLURM_JOB_NODELIST="node[0-1]", SLURM_GPUS_ON_NODE="2")
tasks = range(int(array[1]), int(array[1]) + 2) if array else [0]
jobs = {{f"7{{task}}": 0 for task in tasks}}
start = lambda job: subprocess.Popen(["bash", script, *arguments], env=dict(base, SLURM_JOB_ID=job, SLURM_RESTART_COUNT=str(jobs[job])))
running = {{job: start(job) for job in jobs}}
code = 0
while running:
    for job, process in list(running.items()):
        if process.poll() is None:
            continue
        del running[job]
        wanted = Path(f"requeue-{{job}}")
        if wanted.exists():
            wanted.unlink()
            jobs[job] += 1
            running[job] = start(job)
        else:
            code = max(code, process.returncode)
    time.sleep(0.1)
sys.exit(code)
"""
SRUN = """#!{python}
import os, signal, subprocess, sys
steps = [subprocess.Popen(sys.argv[1:]) for _ in range(int(os.environ["SLURM_NNODES"]))]
signal.signal(signal.SIGTERM, lambda *_: [step.terminate() for step in steps])
codes = [step.wait() for step in steps]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = """#!{python}
import sys
from pathlib import Path
if sys.argv[1] == "requeue":
    Path(f"requeue-{{sys.argv[2]}}").touch()
else:
    print("127.0.0.1\\n127.0.0.1")
"""


@pytest.fixture
def cluster(tmp_path):
    """A folder with the page's scripts, and the environment in which SLURM's commands are stand-ins."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(text.replace("29500", port), "utf-8")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
        (commands / name).write_text(text.format(python=sys.executable), "utf-8")
        (commands / name).chmod(0o755)
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])

    def start(*words):
        return subprocess.Popen(
            [str(word) for word in words], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    start.port = port
    return start


def ended(process):
    out, _ = process.communicate(timeout=600)
    return process.returncode, out


def wait_for(found, process, seconds=300):
    until = time.monotonic() + seconds
    while not (value := found()):
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < until
        time.sleep(0.05)
    return value


def processes_of(process, *words):
    """Processes below ``process`` that have all ``words`` on their command lines."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            line = child.cmdline()
        except psutil.Error:
            continue
        if all(word in line for word in words) and "srun" not in line[1]:
            found.append(child)
    return found


def student(folder):
    return load_tensors(folder / "student.safetensors")[0]


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-9) for name in ours)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_the_scripts_are_shell(name, tmp_path):
    (tmp_path / name).write_text(SCRIPTS[name], "utf-8")
    subprocess.run(["bash", "-n", name], cwd=tmp_path, check=True)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_launchers_of_two_processes_equal_one(cluster, tiny, tmp_path, manager):
    config = tiny("runtime.precision=float64", "training.images=64")
    (tmp_path / "tiny.yaml").write_text(to_yaml(config), "utf-8")
    words = (
        "bash",
        "nodes.sh",
        f"127.0.0.1:{cluster.port}",
        2,
        2,
        "distill",
        "--config",
        "tiny.yaml",
        "--output",
        "two",
    )
    launchers = [cluster(*words), cluster(*words)]
    for launcher in launchers:
        code, out = ended(launcher)
        assert code == 0, out
    assert "4 process(es)" in (tmp_path / "two" / "report.md").read_text("utf-8")
    assert_close(
        student(tmp_path / "two"), student(api.distill(config, output=tmp_path / "one", manager=manager).folder)
    )


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_job_on_two_nodes_that_is_interrupted_queues_itself_and_ends_as_one_process_does(
    cluster, tiny, tmp_path, manager
):
    config = tiny("runtime.precision=float64", "training.images=9600", "checkpointing.every_images=160")
    (tmp_path / "tiny.yaml").write_text(to_yaml(config), "utf-8")
    job = cluster("sbatch", "distill.sbatch", "two", "--config", "tiny.yaml")
    wait_for(lambda: list((tmp_path / "two").glob("checkpoints/images-*")), job)
    for step in psutil.Process(job.pid).children(recursive=True):
        if any(word.endswith("/srun") for word in step.cmdline()):
            step.send_signal(signal.SIGTERM)
    code, out = ended(job)
    assert code == 0, out
    assert "The run was stopped at image" in out
    assert json.loads((tmp_path / "two" / "run.json").read_text())["status"] == "finished"
    assert_close(
        student(tmp_path / "two"), student(api.distill(config, output=tmp_path / "one", manager=manager).folder)
    )


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_array_makes_one_table_though_a_worker_is_killed(cluster, tmp_path):
    section = {"objectives": ["freeflow", "freeflow-prediction"], "seeds": 2}
    base = {**BASE, "name": "array", "trackers": [], "training": {**BASE["training"], "images": 4800}}
    (tmp_path / "compare.yaml").write_text(
        json.dumps({**base, "compare": section, "checkpointing": {"every_images": 160}}), "utf-8"
    )
    words = ("array.sbatch", "compare", "--config", "compare.yaml", "--output", "table")
    jobs = cluster("sbatch", *words)
    running = wait_for(lambda: list(tmp_path.glob("table/*-seed*/checkpoints/images-*")), jobs)[0].parents[1]
    killed = json.loads((running / "run.json").read_text())["process"]
    assert killed in {child.pid for child in processes_of(jobs, "compare")}
    os.kill(killed, signal.SIGKILL)
    _, out = ended(jobs)
    if not (tmp_path / "table" / "comparison.csv").is_file():  # the killed one was the last at work
        code, out = ended(cluster("sbatch", *words))
        assert code == 0, out
    rows = list(csv.DictReader((tmp_path / "table" / "runs.csv").open()))
    assert {row["objective"] for row in rows} == set(section["objectives"]), out
    states = [json.loads(file.read_text()) for file in tmp_path.glob("table/*-seed*/run.json")]
    assert [state["status"] for state in states] == ["finished"] * 4
    assert {state["process"] for state in states} != {killed}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_array_shares_samples_though_a_worker_is_killed(cluster, tmp_path, manager):
    words = ("sample", "--teacher", "digits", "--num", 4000, "--steps", 12, "--batch-size", 64, "--format", "npz")
    jobs = cluster("sbatch", "array.sbatch", *words, "--output", "samples")
    wait_for(lambda: list(tmp_path.glob("samples/parts/block-*.npz")), jobs)
    worker = next(child for child in processes_of(jobs, "sample") if "freeflow_cli" in child.cmdline())
    worker.kill()
    ended(jobs)
    again = cluster("sbatch", "array.sbatch", *words, "--output", "samples")
    code, out = ended(again)
    assert code == 0, out
    api.sample(
        teacher="digits",
        num=4000,
        steps=12,
        batch_size=64,
        image_format="npz",
        output=tmp_path / "one",
        manager=manager,
    )
    with np.load(tmp_path / "samples" / "samples.npz") as ours, np.load(tmp_path / "one" / "samples.npz") as theirs:
        assert np.array_equal(ours["arr_0"], theirs["arr_0"])
