"""W&B offline: its file holds what the journal says, once."""

import json
import sys

import pytest
from freeflow_wandb.config import WandbConfig
from freeflow_wandb.tracker import WandbTracker

from freeflow_core.errors import ConfigError
from freeflow_core.tracking import FOLDER


@pytest.fixture
def make_tracker():
    return lambda **options: WandbTracker(WandbConfig(mode="offline", **options))


def records(folder):
    """Every record of the transaction logs: LevelDB's log format behind seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, place, parts = path.read_bytes(), 7, b""
        while place + 7 <= len(data):
            if 32768 - place % 32768 < 7:
                place += 32768 - place % 32768
                continue
            length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
            parts += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):
                yield Record.FromString(parts)
                parts = b""


def history(folder):
    rows = []
    for record in records(folder):
        if record.HasField("history"):
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            rows.append({name: value for name, value in row.items() if name in ("images", "student/loss", "_step")})
    return rows


def test_values_are_logged_once_over_the_images_seen(journal, sent):
    journal.add_metrics(64, {"student/loss": 0.5})
    assert sent(journal) == 1
    for file in (journal.folder / FOLDER).glob("*.json"):
        file.unlink()  # killed before anything was noted
    journal.add_metrics(128, {"student/loss": 0.25})
    journal.add_picture(128, "samples", journal.folder / "grid.png")
    assert sent(journal) == 1
    rows = history(journal.folder)
    assert [row["student/loss"] for row in rows if "student/loss" in row] == [0.5, 0.25]
    assert [row["images"] for row in rows] == [64, 128, 128]
    assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})
    assert list(journal.folder.glob("wandb/*/files/media/images/samples*.png"))
    written = b"".join(record.SerializeToString() for record in records(journal.folder))
    assert b"secret" not in written
    assert b"trial" in written


def test_without_the_package_the_install_line_is_named(journal, sent, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'freeflow-distill\[wandb\]'"):
        sent(journal)
