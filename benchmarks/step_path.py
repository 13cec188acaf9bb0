"""The way of one training step through the project's files.

python benchmarks/step_path.py --preset digits

Counted by ``sys.settrace`` between the call of ``Trainer.step`` and its return, in the second step, in functions that
stand in files of this project (those that the interpreter writes for dataclasses do not):

files: those of which a function is entered.
calls: functions, properties and generators entered; one that is resumed is entered again.
moves: calls whose function stands in another file than that of the call before it.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from freeflow_core.config import load_run_config
from freeflow_core.engine.build import Builder, build_components
from freeflow_core.engine.process import start_accelerator
from freeflow_core.engine.state import build_state
from freeflow_core.engine.trainer import Trainer
from freeflow_core.errors import FreeflowError
from freeflow_core.plugin import Manager, Registry

_ROOT = Path(__file__).resolve().parents[1]
_ROOMS = tuple(f"{_ROOT / room}/" for room in ("freeflow_core", "plugins"))


@dataclass
class StepPath:
    """What a step enters, in order: (file within the project, function)."""

    calls: list[tuple[str, str]] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        """In the order in which they are first entered."""
        return list(dict.fromkeys(file for file, _ in self.calls))

    @property
    def moves(self) -> list[tuple[str, str]]:
        """(from file, to file)."""
        return [(before[0], after[0]) for before, after in pairwise(self.calls) if before[0] != after[0]]


def trace(function: Callable[[], None]) -> StepPath:
    """Call ``function`` and note its way."""
    path = StepPath()

    def enter(frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(_ROOMS):
            path.calls.append((name[len(str(_ROOT)) + 1 :], frame.f_code.co_qualname))

    sys.settrace(enter)
    try:
        function()
    finally:
        sys.settrace(None)
    return path


def step_path(preset: str, assignments: Sequence[str] = ()) -> StepPath:
    """The second training step of a preset; nothing is written."""
    registry = Registry(Manager.load())
    overrides = {"trackers": [], "runtime": {"device": "cpu"}}
    config = load_run_config(registry, "distill", preset=preset, overrides=overrides, assignments=list(assignments))
    accelerator = start_accelerator(config.runtime)
    components = build_components(Builder(registry, accelerator.device, config.seed), config)
    trainer = Trainer(config, components, build_state(config, components, accelerator), accelerator)
    trainer.step()
    return trace(trainer.step)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="digits", help="what to train")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change it, as for freeflow")
    parser.add_argument("--moves", action="store_true", help="list the moves, too")
    options = parser.parse_args(arguments)
    try:
        path = step_path(options.preset, options.set)
    except FreeflowError as error:
        print(error, file=sys.stderr)
        return 2
    counts = Counter(path.calls)
    for file in path.files:
        print(file)
        for (place, function), count in counts.items():
            if place == file:
                print(f"    {count:>3} {function}")
    for (start, end), count in Counter(path.moves).most_common() if options.moves else ():
        print(f"{count:>3} {start} -> {end}")
    print(f"{len(path.files)} files, {len(path.calls)} calls, {len(path.moves)} moves between files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
