"""What a fault suite does its trials on: runs of every sort, and what must be the same of two of them."""

import contextlib
import json
import os
import shutil
import sqlite3
import zlib
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import yaml
from forked import Ended, Forked, import_noted, note_modules
from run_helpers import TINY, VOLATILE, records
from safetensors.torch import load_file

from freeflow_core.engine.checkpoint import damage

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
    "asynchronous": {"training": {"images": 240}, "checkpointing": {"every_images": 16, "asynchronous": True}},
    "two processes": {"training": {"images": 480}, "checkpointing": {"every_images": 96}},
    "sharded": {
        "training": {"images": 480}, "checkpointing": {"every_images": 96, "asynchronous": True},
        "runtime": {"sharding": "full"},
    },
}  # fmt: skip
"""What a run mostly does when it is killed."""
OF_TWO = "two processes", "sharded", "requeued"
OTHERS: dict[str, dict[str, Any]] = {
    "writes": {
        "training": {"images": 48}, "logging": {"every_images": 48}, "checkpointing": {"every_images": 16, "keep": 1},
        "samples": {"every_images": 32}, "evaluation": SCENARIOS["evaluation"]["evaluation"] | {"every_images": 32},
    },
    "requeued": {"training": {"images": 12_000}, "logging": {"every_images": 96_000}},
}  # fmt: skip
"""Of trials that kill no run: every kind of file in few writes; long enough to be stopped after its start."""


class Broken(AssertionError):
    """A run that was lost, or that came to another end."""


def check(good: bool, problem: str, ended: Ended | None = None) -> None:
    if not good:
        raise Broken(problem + (f": {' '.join(ended.text.split())[-600:]}" if ended else ""))


def end_of(running: Forked, seconds: float | None = 300) -> Ended:
    """How it ended, which it must in so many seconds."""
    if (ended := running.wait(seconds)) is None:
        raise Broken("it hung")
    return ended


def good_end_of(running: Forked, problem: str, seconds: float | None = 300) -> Ended:
    ended = end_of(running, seconds)
    check(ended.code == 0, f"{problem} (code {ended.code})", ended)
    return ended


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
        digest = zlib.crc32(json.dumps(changes, sort_keys=True).encode())
        path = self.folder / f"{scenario.replace(' ', '-')}-{digest}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    def baseline(self, scenario: str) -> tuple[Path, float]:
        """The run that nothing happened to, and how long it took."""
        folder = self.folder / f"baseline-{scenario.replace(' ', '-')}"
        note, modules = folder / "seconds.json", folder / "modules.txt"
        if not note.exists():
            shutil.rmtree(folder, ignore_errors=True)
            for output in (folder / "first" / "run", folder / "run"):  # the first to know what to import
                running = self.run(scenario, output, prepare=note_modules(modules))
                ended = good_end_of(running, "the baseline failed", None)
                import_noted(modules)
            note.write_text(json.dumps(ended.seconds))
        elif scenario not in self._imported:
            import_noted(modules)
        self._imported.add(scenario)
        return folder / "run", json.loads(note.read_text())

    def run(self, scenario: str, output: Path, **options: Any) -> Forked:
        """Start a run, or go on with it as its user would: with --resume once there is a run to go on with."""
        output.parent.mkdir(parents=True, exist_ok=True)
        options.setdefault("num_processes", 2 if scenario in OF_TWO else 1)
        words = self.words(scenario, output, options.pop("changes", {}))
        return Forked(words, output.parent / "log.txt", **options)

    def words(self, scenario: str, output: Path, changes: dict[str, Any]) -> list[str | Path]:
        """Its command line."""
        resume = ["--resume"] if (output / "config.yaml").is_file() else []
        return ["distill", "--config", self.config(scenario, **changes), "--output", output, *resume]

    def finish(self, scenario: str, output: Path, **options: Any) -> Ended:
        return good_end_of(self.run(scenario, output, **options), "it could not be gone on with")


def weights(run: Path) -> dict[str, str]:
    """Digests of the last checkpoint's tensors. A file's bytes also hold their order, which processes decide by turns."""
    newest = max((run / "checkpoints").glob("images-*"))
    check(damage(newest) is None, f"{newest.name} is damaged")
    return {
        f"{file.name}: {name}": sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
        for file in newest.glob("*.safetensors")
        if file.name != "random.safetensors"
        for name, tensor in load_file(file).items()
    }


def rows(database: Path) -> Counter[tuple[str, int, float]]:
    """What MLflow has of metrics, of all runs."""
    with contextlib.closing(sqlite3.connect(database)) as opened:
        found = opened.execute("select key, step, value from metrics").fetchall()
    return Counter((k, s, 0.0 if k.endswith(VOLATILE) else v) for k, s, v in found)


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
