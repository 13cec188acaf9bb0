"""What a tracker promises."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from PIL import Image

from freeflow_core.interfaces import Tracker
from freeflow_core.interfaces.journal import Journal
from freeflow_core.testing.contracts.base import ComponentContract
from freeflow_core.tracking import FOLDER, Replay
from freeflow_core.types import describe

_ODD = {"student/loss": 1.0, "weird name: 100 %, (ä)": 2.0, "a" * 300: 3.0}


class TrackerContract(ComponentContract):
    """Checks of a tracker, in a temporary folder."""

    kind: ClassVar[str] = "tracker"

    def test_a_whole_run(self) -> None:
        with _journal() as journal:
            journal.add_metrics(64, {"student/loss": 0.5})
            Image.new("RGB", (8, 8)).save(journal.folder / "grid.png")
            journal.add_picture(64, "samples/grid", journal.folder / "grid.png")
            note = journal.folder / "note.txt"
            note.write_text("kept", "utf-8")
            journal.add_file(64, note)
            replay = self.replay(journal)
            replay.send()
            replay.end("finished", 1.0)
            self.expect(replay.is_complete(), "nothing left to send", "something left")

    def test_options_are_plain_json(self) -> None:
        with _journal() as journal:
            replay = self.replay(journal)
            try:
                replay.send()
            except TypeError as error:
                self.fail("JSON values from options() and in notes", str(error))
            options = self.tracker().options(journal.run())
            same = isinstance(options, dict) and json.loads(json.dumps(options)) == options
        self.expect(same, "options that JSON gives back as they were", describe(options))

    def test_goes_on_after_a_restart(self) -> None:
        with _journal() as journal:
            for images in (64, 128):
                journal.add_metrics(images, {"student/loss": 1.0})
                replay = self.replay(journal)
                replay.send()
                self.expect(replay.sent.metrics == 1, "1 new value", f"{replay.sent.metrics}")

    def test_nothing_is_doubled_by_a_kill(self) -> None:
        with _journal() as journal:
            replay = self.replay(journal)
            replay.send()
            notes = {file: file.read_bytes() for file in (journal.folder / FOLDER).glob("*.json")}
            journal.add_metrics(64, {"student/loss": 1.0})
            replay.send()
            for file, content in notes.items():
                file.write_bytes(content)
            again = self.replay(journal)
            again.send()
            self.expect(again.sent.metrics == 0, "no new value", f"{again.sent.metrics}")

    def test_odd_values_stop_no_run(self) -> None:
        with _journal() as journal:
            journal.add_metrics(1, _ODD)
            journal.add_metrics(2, {"nan": float("nan"), "infinite": float("inf")})
            journal.add_metrics(3, {})
            Image.new("L", (8, 8)).save(journal.folder / "grey.png")
            journal.add_picture(3, "a picture, of grey", journal.folder / "grey.png")
            journal.add_file(3, journal.folder / "no such file.txt")
            try:
                self.replay(journal).send()
            except Exception as error:
                self.fail("no error", f"{type(error).__name__}: {error}")

    def tracker(self) -> Tracker:
        built: Tracker = self.build()
        return built

    def replay(self, journal: Journal) -> Replay:
        return Replay(self.tracker(), journal.run(), journal)


@contextmanager
def _journal() -> Iterator[Journal]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name) / "runs" / "contract"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("name: contract\ntraining: {images: 128}\n", "utf-8")
        journal = Journal(folder)
        journal.write_status(command="distill", status="running", key=Path(name).name)
        yield journal
