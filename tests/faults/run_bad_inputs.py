"""Goes through the table of bad inputs; prints what each came to, and the counts."""

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import bad_inputs
from bad_inputs import BadInput
from click import unstyle
from freeflow_cli.main import build_app
from typer.testing import CliRunner

from freeflow_core.plugin import Manager

ACCEPTED, UNCLEAR, CLEAR = "accepted", "unclear", "clear"
_MEMORY = 24 * 2**30
"""Bytes of address space: who asks for terabytes is refused by the system at once."""


class Outcome(NamedTuple):
    row: BadInput
    kind: str
    seconds: float
    text: str


def attempt(row: BadInput, folder: Path) -> Outcome:
    """A good answer is a paragraph with exit code 1 or 2, that is no traceback and none that calls itself unexpected."""
    shutil.rmtree(folder / "new", ignore_errors=True)
    arguments, began = bad_inputs.placed(row, folder), time.monotonic()
    result = CliRunner().invoke(build_app(Manager.load()), arguments)
    text = " ".join(unstyle(result.stderr).split())
    is_clear = (
        result.exit_code in (1, 2) and len(text) > 20 and "Unexpected error" not in text and "Traceback" not in text
    )
    is_clear = is_clear and any(word in text for word in row.mentions)
    kind = ACCEPTED if result.exit_code == 0 else CLEAR if is_clear else UNCLEAR
    return Outcome(row, kind, time.monotonic() - began, f"{text} {'' if is_clear else repr(result.exception)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="Rows whose name holds this.")
    parser.add_argument("--verbose", action="store_true", help="Every answer, not only the bad ones.")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.RLIM_INFINITY))
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bad_inputs.make_files(folder)
        os.environ["FREEFLOW_CACHE"], os.environ["FREEFLOW_OFFLINE"] = str(folder / "cache"), "1"
        os.chdir(folder)
        for row in bad_inputs.bad_inputs():
            if options.only in row.name:
                found = attempt(row, folder)
                counts[found.kind] += 1
                if options.verbose or found.kind != CLEAR or found.seconds > 20:
                    print(f"{found.kind:<9} {found.seconds:5.1f} s  {row.name}\n    {found.text[:400]}", flush=True)
    print(
        f"bad inputs: {counts.total()}; " + ", ".join(f"{kind}: {counts[kind]}" for kind in (CLEAR, UNCLEAR, ACCEPTED))
    )
    sys.exit(counts.total() != counts[CLEAR])


if __name__ == "__main__":
    main()
