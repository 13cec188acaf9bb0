"""What a fault suite does to runs, one trial at a time, and what must be the same afterwards."""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from forked import Ended, Forked
from run_helpers import TINY

from freeflow_core.engine.checkpoint import damage

SCENARIOS: dict[str, dict[str, Any]] = {
    "training": {"training": {"images": 1600}, "checkpointing": {"every_images": 480}},
    "checkpoint": {"training": {"images": 480}, "checkpointing": {"every_images": 16}},
    "evaluation": {
        "training": {"images": 160},
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
_VOLATILE = ("time", "images_per_second", "memory_gib", "ms_per_image")
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
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ |= {"FREEFLOW_CACHE": str(self.folder / "cache"), "MLFLOW_DISABLE_TELEMETRY": "true"}

    def config(self, scenario: str, **changes: Any) -> Path:
        values = {**TINY, "name": "run"}
        for key, value in {**SCENARIOS[scenario], **changes}.items():
            values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
        path = (
            self.folder / f"{scenario.replace(' ', '-')}-{abs(hash(json.dumps(changes, sort_keys=True))) % 10**6}.yaml"
        )
        path.write_text(yaml.safe_dump(values))
        return path

    def baseline(self, scenario: str) -> tuple[Path, float]:
        """The run that nothing happened to, and how long it took."""
        folder = self.folder / f"baseline-{scenario.replace(' ', '-')}"
        note = folder / "seconds.json"
        if not note.exists():
            shutil.rmtree(folder, ignore_errors=True)
            ended = self.run(scenario, folder / "run").wait()
            check(ended is not None and ended.code == 0, "the baseline failed", ended)
            note.write_text(json.dumps(ended.seconds))
        return folder / "run", json.loads(note.read_text())

    def run(self, scenario: str, output: Path, **options: Any) -> Forked:
        """Start a run, or go on with it as its user would: with --resume once there is a run to go on with."""
        output.parent.mkdir(parents=True, exist_ok=True)
        options.setdefault("num_processes", 2 if scenario == "two processes" else 1)
        words = ["distill", "--config", self.config(scenario, **options.pop("changes", {})), "--output", output]
        if (output / "config.yaml").is_file():
            words.append("--resume")
        return Forked(words, output.parent / "log.txt", **options)

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


def records(run: Path) -> list[dict[str, float]]:
    """The metrics, without what the clock and the machine decide."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(_VOLATILE)} for line in lines]


def rows(database: Path) -> Counter[tuple[str, int, float]]:
    """What MLflow has of metrics, of all runs."""
    with contextlib.closing(sqlite3.connect(database)) as opened:
        found = opened.execute("select key, step, value from metrics").fetchall()
    return Counter((k, s, 0.0 if k.endswith(_VOLATILE) else v) for k, s, v in found)


def check_same(run: Path, baseline: Path) -> None:
    """The same weights to the bit, the same metrics once each, and nothing left lying about."""
    check(json.loads((run / "run.json").read_text())["status"] == "finished", "run.json does not say finished")
    check(weights(run) == weights(baseline), "the weights differ")
    check(records(run) == records(baseline), "metrics were lost or doubled")
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


def stop(bench: Bench, scenario: str, output: Path, draws: random.Random) -> float:
    """Ask a run to stop as a scheduler does, twice; the seconds until it had. Then let it end."""
    baseline, seconds = bench.baseline(scenario)
    number = draws.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
    changes = {"logging": {"every_images": 96_000}, "training": {"images": 96_000, "stop_at_images": None}}
    del changes["training"]
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
    ended = running.wait()
    took = time.monotonic() - asked
    assert ended is not None
    check(ended.code in (0, 75, -number), f"it ended with {ended.code}", ended)
    if ended.code == 75:
        check(json.loads((output / "run.json").read_text())["status"] == "interrupted", "run.json is not true")
    bench.finish(scenario, output)
    check(weights(output) == weights(baseline), "the weights differ")
    return took
