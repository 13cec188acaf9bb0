"""What a fault suite does to runs, one trial at a time, and what must be the same afterwards."""

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
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from forked import Ended, Forked, import_noted, note_modules
from run_helpers import TINY, processes

from freeflow_core.engine.checkpoint import damage
from freeflow_core.network_file import load_tensors

SCENARIOS: dict[str, dict[str, Any]] = {
    "training": {"training": {"images": 1600}, "checkpointing": {"every_images": 480}},
    "checkpoint": {"training": {"images": 240}, "checkpointing": {"every_images": 16}},
    "evaluation": {
        "training": {"images": 160}, "checkpointing": {"every_images": 48}, "samples": {"every_images": 32},
        "evaluation": {
            "enabled": True, "evaluators": ["energy-distance"], "num_samples": 200, "batch_size": 10, "every_images": 48,
            "reference_steps": 8, "cache": False,
        },
    },
    "start": {"training": {"images": 64}},
    "mlflow": {
        "training": {"images": 480}, "checkpointing": {"every_images": 160}, "trackers": [{"name": "mlflow", "flush_seconds": 0.05}],
    },
    "two processes": {"training": {"images": 480}, "checkpointing": {"every_images": 96}},
}  # fmt: skip
"""What a run mostly does when it is killed."""
OTHERS: dict[str, dict[str, Any]] = {
    "writes": {
        "training": {"images": 48}, "logging": {"every_images": 48}, "checkpointing": {"every_images": 16, "keep": 1},
        "samples": {"every_images": 32}, "evaluation": SCENARIOS["evaluation"]["evaluation"] | {"every_images": 32},
    },
    "requeued": {"training": {"images": 12_000}, "logging": {"every_images": 96_000}},
}  # fmt: skip
"""Of trials that kill no run: every kind of file in few writes; long enough to be stopped after its start."""
_VOLATILE = ("time", "images_per_second", "memory_gib", "ms_per_image", "_percentage")
_SKIPPED = "random.safetensors", "state.json"


class Broken(AssertionError):
    """A run that was lost, or that came to another end."""


def check(good: bool, problem: str, ended: Ended | None = None) -> None:
    if not good:
        raise Broken(problem + (f": {' '.join(ended.text.split())[-600:]}" if ended else ""))


@dataclass
class Bench:
    """A folder for trials; baselines in it are made once."""

    folder: Path

    def __post_init__(self) -> None:
        self._imported: set[str] = set()
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ |= {"FREEFLOW_CACHE": str(self.folder / "cache"), "MLFLOW_DISABLE_TELEMETRY": "true"}

    def config(self, scenario: str, **changes: Any) -> Path:
        values = {**TINY, "name": "run"}
        for key, value in {**(SCENARIOS | OTHERS)[scenario], **changes}.items():
            values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
        path = (
            self.folder
            / f"{scenario.replace(' ', '-')}-{zlib.crc32(json.dumps(changes, sort_keys=True).encode())}.yaml"
        )
        path.write_text(yaml.safe_dump(values))
        return path

    def baseline(self, scenario: str) -> tuple[Path, float]:
        """The run that nothing happened to, and how long it took."""
        folder = self.folder / f"baseline-{scenario.replace(' ', '-')}"
        note, modules = folder / "seconds.json", folder / "modules.txt"
        if not note.exists():
            shutil.rmtree(folder, ignore_errors=True)
            for output in (folder / "first" / "run", folder / "run"):  # the first to know what to import
                ended = self.run(scenario, output, prepare=note_modules(modules)).wait()
                check(ended is not None and ended.code == 0, "the baseline failed", ended)
                import_noted(modules)
            note.write_text(json.dumps(ended.seconds))
        elif scenario not in self._imported:
            import_noted(modules)
        self._imported.add(scenario)
        return folder / "run", json.loads(note.read_text())

    def run(self, scenario: str, output: Path, **options: Any) -> Forked:
        """Start a run, or go on with it as its user would: with --resume once there is a run to go on with."""
        output.parent.mkdir(parents=True, exist_ok=True)
        options.setdefault("num_processes", 2 if scenario in ("two processes", "requeued") else 1)
        words = self.words(scenario, output, options.pop("changes", {}))
        return Forked(words, output.parent / "log.txt", **options)

    def words(self, scenario: str, output: Path, changes: dict[str, Any]) -> list[str | Path]:
        """Its command line."""
        begun = (output / "config.yaml").is_file()
        resume = ["--resume"] if begun else []
        return ["distill", "--config", self.config(scenario, **changes), "--output", output, *resume]

    def finish(self, scenario: str, output: Path, **options: Any) -> Ended:
        ended = self.run(scenario, output, **options).wait(300)
        check(ended is not None, "it hung")
        assert ended is not None
        check(ended.code == 0, f"it could not be gone on with (code {ended.code})", ended)
        return ended


def weights(run: Path, skipped: tuple[str, ...] = _SKIPPED) -> dict[str, str]:
    """Digests of the last checkpoint's files."""
    newest = max((run / "checkpoints").glob("images-*"))
    check(damage(newest) is None, f"{newest.name} is damaged")
    lines = (newest / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines) if name not in skipped}


def records(run: Path, kind: str = "") -> list[dict[str, Any]]:
    """Metrics (of a ``kind``, by how their names begin), pictures and files, without what clock and machine decide."""
    files = [run / name for name in ("metrics.jsonl", "artifacts.jsonl")]
    lines = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.endswith(_VOLATILE)}
        for line in lines
        if "path" in line or any(name.startswith(kind) for name in line)
    ]


def rows(database: Path) -> Counter[tuple[str, int, float]]:
    """What MLflow has of metrics, of all runs."""
    with contextlib.closing(sqlite3.connect(database)) as opened:
        found = opened.execute("select key, step, value from metrics").fetchall()
    return Counter((k, s, 0.0 if k.endswith(_VOLATILE) else v) for k, s, v in found)


def check_same(run: Path, baseline: Path) -> None:
    """The same weights to the bit, the same metrics once each, and nothing left lying about."""
    check(json.loads((run / "run.json").read_text())["status"] == "finished", "run.json does not say finished")
    check(weights(run) == weights(baseline), "the weights differ")
    check(records(run) == records(baseline), "metrics, pictures or files were lost or doubled")
    left = [
        path.name
        for path in run.rglob(".*")
        if path.name.startswith((".partial", ".removed")) or path.suffix == ".partial"
    ]
    check(not left, f"left behind: {left}")


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
        sync(output)
        check(rows(output.parent / "mlflow.db") == rows(baseline.parent / "mlflow.db"), "MLflow's rows differ")
    return kills


def sync(output: Path) -> None:
    """Send what did not arrive; a run that was killed early left nothing to say where to."""
    uri = f"sqlite:///{output.parent / 'mlflow.db'}"
    ended = Forked(["mlflow-sync", output, "--uri", uri], output.parent / "sync.txt").wait(300)
    check(ended is not None and ended.code == 0, "mlflow-sync failed", ended)


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
    ended = running.wait(300)
    took = time.monotonic() - asked
    check(ended is not None, "it hung")
    assert ended is not None
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


def _check_told(ended: Ended) -> None:
    check(ended.code == 1, f"it ended with {ended.code}", ended)
    check("Traceback" not in ended.text and "Unexpected error" not in ended.text, "the error is not clear", ended)


def disk_full(bench: Bench, folder: Path, draws: random.Random, part: int, parts: int) -> dict[str, Any]:
    """The disk is full at a write and after, then there is room again: every ``parts``-th write, from ``part`` on."""
    baseline, _ = bench.baseline("writes")
    for after in range(part, 1000, parts):
        output = folder / f"write-{after}" / "run"
        ended = bench.run("writes", output, prepare=_fails_to_write(output, after)).wait(300)
        check(ended is not None, "it hung")
        assert ended is not None
        if ended.code != 0:
            _check_told(ended)
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

    ended = bench.run("training", folder / "run", prepare=limit).wait(300)
    assert ended is not None
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
    second = Forked(["distill", "--config", bench.config("training"), "--resume", "--output", output], log).wait(300)
    ended = first.wait(300)
    assert second is not None
    assert ended is not None
    check(ended.code == 0, "the first did not finish", ended)
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


def _sent_in_the_end(folder: Path, baseline: Path, ended: Ended | None, stopped: str) -> dict[str, Any]:
    assert ended is not None
    check(ended.code == 0, stopped, ended)
    check_same(folder / "run", baseline)
    sync(folder / "run")
    check(rows(folder / "mlflow.db") == rows(baseline.parent / "mlflow.db"), "MLflow's rows differ")
    return {}


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
        ended = bench.run("mlflow", folder / "run", changes=changes).wait(600)
        other.rollback()
    return _sent_in_the_end(folder, baseline, ended, "a locked MLflow stopped the run")


def mlflow_unreachable(bench: Bench, folder: Path, draws: random.Random) -> dict[str, Any]:
    """A server that is not there."""
    baseline, _ = bench.baseline("mlflow")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{found.getsockname()[1]}"
    changes = {"trackers": [{"name": "mlflow", "flush_seconds": 0.2, "finish_seconds": 1.0, "uri": uri}]}
    ended = bench.run("mlflow", folder / "run", changes=changes).wait(600)
    return _sent_in_the_end(folder, baseline, ended, "an unreachable MLflow stopped the run")


def other_number(bench: Bench, folder: Path, draws: random.Random, numbers: tuple[int, int]) -> dict[str, Any]:
    """A run goes on with another number of processes, to the same weights up to rounding."""
    runtime = {"runtime": {"device": "cpu", "threads": 1, "precision": "float64"}}
    length = SCENARIOS["training"]["training"]
    whole = bench.finish("training", folder / "whole" / "run", changes=runtime)
    check(whole.code == 0, "the whole run failed", whole)
    parts = folder / "parts" / "run"
    stopping = {**runtime, "training": {**length, "stop_at_images": 800}}
    first = bench.run("training", parts, changes=stopping, num_processes=numbers[0]).wait(300)
    assert first is not None
    check(first.code == 0, "the first part failed", first)
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
