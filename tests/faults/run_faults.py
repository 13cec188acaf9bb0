"""The fault suite: kills, stops, full disks, damaged checkpoints and bad inputs, with counts of what they came to.

Every trial is noted in the folder as it ends; the same command again goes on with those that are missing.
"""

import argparse
import itertools
import json
import random
import shutil
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trials
from bench import OF_TWO, SCENARIOS, Bench, Broken
from filelock import FileLock, Timeout

Work = Callable[[Bench, Path, random.Random], dict[str, Any]]
_PARTS = 8
"""Of the writes at which a disk is full."""
STOPPED = ("training", "checkpoint", "evaluation", "two processes")


def kill_of(scenario: str) -> Work:
    return lambda bench, folder, draws: {"kills": trials.kill(bench, scenario, folder / "run", draws)}


def stop_of(scenario: str) -> Work:
    return lambda bench, folder, draws: trials.stop(bench, scenario, folder / "run", draws)


def disk_full_of(part: int) -> Work:
    return lambda *given: trials.disk_full(*given, part=part, parts=_PARTS)


def planned(kills: int) -> dict[str, tuple[Work, int]]:
    """Trials by name: what is done, and how often. A fifth of the kills is of two processes."""
    double = [name for name in SCENARIOS if name in OF_TWO]
    single = [name for name in SCENARIOS if name not in OF_TWO]
    shares = {name: -(-(kills - kills // 5) // len(single)) for name in single}
    shares |= {name: kills // 5 // len(double) for name in double}
    found = {f"kill: {name}": (kill_of(name), count) for name, count in shares.items() if count}
    found |= {f"stop: {name}": (stop_of(name), max(1, kills // 20)) for name in STOPPED}
    found |= {f"disk full: {part + 1} of {_PARTS}": (disk_full_of(part), 1) for part in range(_PARTS)}
    found["files limited"] = (trials.files_limited, 5)
    found["damaged"] = (trials.damaged, 1)
    found["requeued under torchrun"] = (trials.requeued, 2)
    found["two at once"] = (trials.two_at_once, 3)
    found["MLflow locked"] = (trials.mlflow_locked, 1)
    found["MLflow unreachable"] = (trials.mlflow_unreachable, 1)
    found["1 -> 2 processes"] = (lambda *given: trials.other_number(*given, numbers=(1, 2)), 1)
    found["2 -> 1 processes"] = (lambda *given: trials.other_number(*given, numbers=(2, 1)), 1)
    found["locale and clock"] = (trials.locale_and_clock, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("faults"), help="Where trials and their results are kept.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--only", default="", help="Trials whose name begins so.")
    parser.add_argument("--count", type=int, help="Trials of each name, instead of the usual number.")
    parser.add_argument("--seconds", type=float, help="Begin no trial after so many.")
    options = parser.parse_args()
    bench, began = Bench(options.folder.resolve()), time.monotonic()
    lock = FileLock(bench.folder / ".lock")  # two suites would remove each other's trials
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sys.exit(f"Another suite is at work in {bench.folder}. Wait for it, or choose another --folder.")
    file = bench.folder / "results.jsonl"
    done = {line["trial"]: line for line in map(json.loads, file.read_text().splitlines())} if file.exists() else {}
    plan = {name: trial for name, trial in planned(options.kills).items() if name.startswith(options.only)}
    most = options.count or max(count for _, count in plan.values())
    for number, name in itertools.product(range(most), plan):  # in turn, so that a part of the suite is a bit of all
        work, count = plan[name]
        trial = f"{name} {number}"
        late = options.seconds is not None and time.monotonic() - began > options.seconds
        if number >= (options.count or count) or trial in done or late:
            continue
        done[trial] = attempt(bench, name, number, work) | {"trial": trial, "name": name}
        with file.open("a") as results:
            results.write(json.dumps(done[trial]) + "\n")
        print(f"{done[trial]['outcome']:<6} {trial}  {done[trial].get('problem', '')[:900]}", flush=True)
    sys.exit(summary(list(done.values()), options.only))


def attempt(bench: Bench, name: str, number: int, work: Work) -> dict[str, Any]:
    folder = bench.folder / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        return {"outcome": "good", **work(bench, folder, random.Random(f"{name} {number}"))}
    except Broken as problem:
        kept = bench.folder / "broken" / f"{name}-{number}".replace(" ", "-").replace(":", "")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept)
        return {"outcome": "BROKEN", "problem": str(problem)}
    except Exception:
        return {"outcome": "ERROR", "problem": traceback.format_exc()}


def summary(results: list[dict[str, Any]], only: str) -> int:
    """Print a table; the number of trials that went wrong."""
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        if result["name"].startswith(only):
            by_name[result["name"]].append(result)
    kills = bad = 0
    for name, found in by_name.items():
        outcomes = Counter(result["outcome"] for result in found)
        bad += len(found) - outcomes["good"]
        kills += (own := sum(result.get("kills", 0) for result in found))
        slowest = max((result["seconds"] for result in found if "seconds" in result), default=None)
        more = f", {own} kills" if own else ""
        more += f", longest stop {slowest:.2f} s" if slowest is not None else ""
        more += "".join(
            f", {sum(r[key] for r in found)} {key}" for key in ("stops", "writes", "damaged") if key in found[0]
        )
        print(f"{name:<22} {len(found):>4} trials, {outcomes['good']} good{more}")
    print(f"in all: {sum(map(len, by_name.values()))} trials, {kills} kills, {bad} broken")
    return int(bad > 0)


if __name__ == "__main__":
    main()
