"""What a fault suite does to runs, one trial at a time."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import SCENARIOS, Bench, Broken, check, check_same, end_of, good_end_of, rows, weights
from forked import Forked
from run_helpers import processes, records

from freeflow_core.network_file import load_tensors


def kill(bench: Bench, scenario: str, output: Path, draws: random.Random) -> int:
    """Kill a run at a random moment, perhaps again when it goes on; then let it end. How many kills there were."""
    baseline, seconds = bench.baseline(scenario)
    kills, span = 0, seconds * (0.4 if scenario == "start" else 1.0)
    while kills == 0 or (kills < 3 and draws.random() < 0.3):
        ended = bench.run(scenario, output).kill(draws.uniform(0, span))
        kills += ended.code == -signal.SIGKILL
        if ended.code == 0:
            if kills:
                break
            shutil.rmtree(output.parent)
        else:
            check(ended.code == -signal.SIGKILL, f"it failed by itself (code {ended.code})", ended)
    bench.finish(scenario, output)
    check_same(output, baseline)
    if scenario == "mlflow":
        check_sent(output, baseline)
    return kills


def check_sent(output: Path, baseline: Path) -> None:
    """MLflow has the same once it is sent what did not arrive; a run killed early left nothing to say where to."""
    uri = f"sqlite:///{output.parent / 'mlflow.db'}"
    good_end_of(Forked(["mlflow-sync", output, "--uri", uri], output.parent / "sync.txt"), "mlflow-sync failed")
    check(rows(output.parent / "mlflow.db") == rows(baseline.parent / "mlflow.db"), "MLflow's rows differ")


def stop(bench: Bench, scenario: str, output: Path, draws: random.Random) -> dict[str, Any]:
    """Ask a run to stop as a scheduler does, twice, and note the seconds until it had. Then let it end."""
    baseline, seconds = bench.baseline(scenario)
    number = draws.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
    changes = {"logging": {"every_images": 96_000}}
    running = bench.run(scenario, output, changes=changes)
    while not (output / "metrics.jsonl").exists() and not (output / "trackers").exists():
        if running.wait(0.0) is not None or time.monotonic() - running.began > seconds:
            break
        time.sleep(0.01)
    running.wait(draws.uniform(0.3, 0.9) * seconds)
    asked = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        running.send(number)
        running.send(number)
    ended = end_of(running)
    took = time.monotonic() - asked
    check(ended.code in (0, 75, -number), f"it ended with {ended.code}", ended)
    if ended.code == 75 and (output / "run.json").exists():  # else it had not begun
        check(json.loads((output / "run.json").read_text())["status"] == "interrupted", "run.json is not true")
    bench.finish(scenario, output)
    check(weights(output) == weights(baseline), "the weights differ")
    told = [records(run, "evaluation/") for run in (output, baseline)]
    check(told[0] == told[1], "scores, pictures or files were lost or doubled")
    return {"seconds": took, "stops": int(ended.code == 75)}


def _fails_to_write(folder: Path, after: int) -> Callable[[int], None]:
    """From the ``after``-th time on that a file below ``folder`` is opened for writing, or made, the disk is full."""
    seen = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR)) if isinstance(flags, int) else "r" not in str(mode)
        elif event == "os.mkdir":
            path, writes = arguments[0], True
        else:
            return
        if writes and isinstance(path, (str, os.PathLike)) and str(path).startswith(str(folder)):
            seen[0] += 1
            if seen[0] > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    return lambda rank: sys.addaudithook(hook)


def disk_full(bench: Bench, folder: Path, draws: random.Random, part: int, parts: int) -> dict[str, Any]:
    """The disk is full at a write and after, then there is room again: every ``parts``-th write, from ``part`` on."""
    baseline, _ = bench.baseline("writes")
    for after in range(part, 1000, parts):
        output = folder / f"write-{after}" / "run"
        ended = end_of(bench.run("writes", output, prepare=_fails_to_write(output, after)))
        if ended.code != 0:
            check(ended.code == 1, f"it ended with {ended.code}", ended)
            is_clear = "Traceback" not in ended.text and "Unexpected error" not in ended.text
            check(is_clear, "the error is not clear", ended)
            bench.finish("writes", output)
        check_same(output, baseline)
        if "No space left" not in ended.text:
            return {"writes": len(range(part, after, parts))}
        shutil.rmtree(output.parent)
    raise Broken("a run of so few images has too many writes")


def files_limited(bench: Bench, folder: Path, draws: random.Random) -> dict[str, Any]:
    """``ulimit -f``: no file may be larger than a few KiB."""
    import resource

    baseline, _ = bench.baseline("training")
    size = draws.choice([256, 1024, 2048, 4096, 8192])

    def limit(rank: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    ended = end_of(bench.run("training", folder / "run", prepare=limit))
    if ended.code != 0:
        check(ended.code == 1, f"it ended with {ended.code}", ended)
        bench.finish("training", folder / "run")
    check_same(folder / "run", baseline)
    return {"size": size, "code": ended.code}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


DAMAGES: list[Callable[[Path], object]] = [_flip, lambda path: os.truncate(path, path.stat().st_size // 2), Path.unlink]


def damaged(bench: Bench, folder: Path, draws: random.Random) -> dict[str, Any]:
    """Every file of the newest checkpoint, in one of three ways: named, never taken, the run goes on from the older."""
    baseline, _ = bench.baseline("training")
    count = 0
    stopped = folder / "stopped" / "run"
    bench.run(
        "training", stopped, changes={"training": {**SCENARIOS["training"]["training"], "stop_at_images": 960}}
    ).wait()
    names = sorted(path.name for path in max((stopped / "checkpoints").iterdir()).iterdir())
    for way, damages in enumerate(DAMAGES):
        for name in names:
            output = folder / f"{name}-{way}" / "run"
            shutil.copytree(stopped, output)
            damages(max((output / "checkpoints").iterdir()) / name)
            ended = bench.finish("training", output)
            check("damaged" in ended.text and name in ended.text, f"{name} damaged in way {way} was not named", ended)
            check(weights(output) == weights(baseline), "the weights differ")
            count += 1
            shutil.rmtree(output.parent)
    return {"damaged": count}


def two_at_once(bench: Bench, folder: Path, draws: random.Random) -> dict[str, Any]:
    """A second process wants the folder of one that is at work."""
    baseline, seconds = bench.baseline("training")
    output = folder / "run"
    first = bench.run("training", output)
    while not (output / "run.json").exists() and first.wait(0.0) is None:
        time.sleep(0.005)
    time.sleep(draws.uniform(0, 0.3) * seconds)
    log = folder / "second.txt"
    second = end_of(Forked(["distill", "--config", bench.config("training"), "--resume", "--output", output], log))
    good_end_of(first, "the first did not finish")
    if second.code != 0:
        check(second.code == 2 and "at work" in second.text, "the second was not refused clearly", second)
    check_same(output, baseline)
    return {"refused": second.code == 2}


def requeued(bench: Bench, folder: Path, draws: random.Random) -> dict[str, Any]:
    """torchrun under a scheduler that sends TERM, kills 30 s later, and starts the job again until it has finished."""
    whole = folder / "whole" / "run"
    bench.finish("requeued", whole)
    output, seconds, stops = folder / "parts" / "run", 0.0, 0
    output.parent.mkdir()

    def status() -> str:
        return str(json.loads((output / "run.json").read_text())["status"]) if (output / "run.json").exists() else ""

    while stops < 20 and status() != "finished":
        job = processes(2, "-m", "freeflow_cli", *bench.words("requeued", output, {}))
        while status() != "running" and job.poll() is None:
            time.sleep(0.05)
        time.sleep(draws.uniform(0.5, 3.0))
        asked = time.monotonic()
        job.terminate()
        try:
            text = job.communicate(timeout=30)[1]
        except subprocess.TimeoutExpired:
            job.kill()
            raise Broken("it was killed: it had not stopped within 30 s") from None
        if status() == "interrupted":
            stops, seconds = stops + 1, max(seconds, time.monotonic() - asked)
        check(status() in ("interrupted", "finished"), f"run.json says {status()!r}: {text[-600:]}")
    check(stops > 0, "it was never stopped")
    check(weights(output) == weights(whole), "the weights differ")
    return {"seconds": seconds, "stops": stops}


def mlflow_locked(bench: Bench, folder: Path, draws: random.Random) -> dict[str, Any]:
    """Another program holds MLflow's database all along."""
    baseline, _ = bench.baseline("mlflow")
    shutil.copy(baseline.parent / "mlflow.db", folder / "mlflow.db")
    changes = {"trackers": [{"name": "mlflow", "flush_seconds": 0.2, "finish_seconds": 1.0, "experiment": "locked"}]}
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as other:
        other.execute("delete from metrics")
        other.execute("delete from latest_metrics")
        other.commit()
        other.execute("begin exclusive")
        good_end_of(bench.run("mlflow", folder / "run", changes=changes), "a locked MLflow stopped the run", 600)
        other.rollback()
    check_same(folder / "run", baseline)
    check_sent(folder / "run", baseline)
    return {}


def mlflow_unreachable(bench: Bench, folder: Path, draws: random.Random) -> dict[str, Any]:
    """A server that is not there."""
    baseline, _ = bench.baseline("mlflow")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{found.getsockname()[1]}"
    changes = {"trackers": [{"name": "mlflow", "flush_seconds": 0.2, "finish_seconds": 1.0, "uri": uri}]}
    good_end_of(bench.run("mlflow", folder / "run", changes=changes), "an unreachable MLflow stopped the run", 600)
    check_same(folder / "run", baseline)
    check_sent(folder / "run", baseline)
    return {}


def other_number(bench: Bench, folder: Path, draws: random.Random, numbers: tuple[int, int]) -> dict[str, Any]:
    """A run goes on with another number of processes, to the same weights up to rounding."""
    runtime = {"runtime": {"device": "cpu", "threads": 1, "precision": "float64"}}
    length = SCENARIOS["training"]["training"]
    bench.finish("training", folder / "whole" / "run", changes=runtime)
    parts = folder / "parts" / "run"
    stopping = {**runtime, "training": {**length, "stop_at_images": 800}}
    good_end_of(bench.run("training", parts, changes=stopping, num_processes=numbers[0]), "the first part failed")
    bench.finish("training", parts, changes=runtime, num_processes=numbers[1])
    tensors = [
        load_tensors(max((run / "checkpoints").iterdir()) / "student.safetensors")[0]
        for run in (folder / "whole" / "run", parts)
    ]
    difference = max(float((a - tensors[1][name]).abs().max()) for name, a in tensors[0].items())
    check(difference < 1e-9, f"the weights differ by {difference}")
    return {"difference": difference}


def locale_and_clock(bench: Bench, folder: Path, draws: random.Random) -> dict[str, Any]:
    """Another language, and a clock that was set back by a year when the run goes on."""
    baseline, seconds = bench.baseline("training")
    real = time.time

    def set_back(rank: int) -> None:
        time.time = lambda: real() - 365 * 86400.0

    variables = {
        "LC_ALL": draws.choice(["C", "tr_TR.UTF-8", "de_DE.UTF-8"]),
        "TZ": "Pacific/Kiritimati",
        "PYTHONUTF8": "0",
    }
    kills = bench.run("training", folder / "run", variables=variables).kill(draws.uniform(0.2, 0.8) * seconds).code != 0
    bench.finish("training", folder / "run", variables=variables, prepare=set_back)
    check_same(folder / "run", baseline)
    return {"kills": int(kills)}
