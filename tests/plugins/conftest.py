"""What the tests of trackers share: runs as they find them, and what is sent of them."""

import pytest
import yaml
from PIL import Image

from freeflow_core.interfaces.journal import Journal
from freeflow_core.tracking import Replay


@pytest.fixture
def make_run(tmp_path):
    """The folder of a run as the engine makes it."""

    def make(name="first", config=None, **status):
        journal = Journal(tmp_path / "runs" / name)
        journal.folder.mkdir(parents=True)
        config = {"name": name, **(config or {"training": {"batch_size": 64, "images": 1280}, "seed": 3})}
        (journal.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        key = f"{tmp_path.name}-{name}"
        journal.write_status(**{"command": "distill", "status": "running", "key": key, "started": 1.7e9} | status)
        journal.add_file(0, journal.folder / "config.yaml")
        return journal

    return make


@pytest.fixture
def journal(make_run):
    """Of a run with a password in its configuration, and a picture and a report beside it."""
    journal = make_run(config={"name": "trial", "seed": 3, "uri": "https://me:secret@host/"})
    Image.new("RGB", (8, 6), "red").save(journal.folder / "grid.png")
    (journal.folder / "report.md").write_text("# Report\n")
    return journal


@pytest.fixture
def sent(make_tracker):
    """Sends all that is new of a journal, and that the run has finished; how many values there were."""

    def send(journal, **options):
        replay = Replay(make_tracker(**options), journal.run(), journal)
        replay.send()
        replay.end("finished", 2.0)
        return replay.sent.metrics

    return send
