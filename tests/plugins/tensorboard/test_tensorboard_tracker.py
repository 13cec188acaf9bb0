"""TensorBoard's own reader finds what the journal says: no more after a kill, no less after a resumed run."""

import sys

import pytest
from freeflow_tensorboard.config import TensorboardConfig
from freeflow_tensorboard.tracker import TensorboardTracker

from freeflow_core.errors import ConfigError
from freeflow_core.tracking import FOLDER


@pytest.fixture
def make_tracker():
    return lambda **options: TensorboardTracker(TensorboardConfig(**options))


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def scalars(folder, name="student/loss"):
    return [(event.step, event.value) for event in read(folder).Scalars(name)]


def test_values_pictures_and_texts_stand_at_the_images_seen(journal, sent):
    record = journal.add_metrics(64, {"student/loss": 0.5, "odd": float("nan")})
    journal.add_picture(64, "samples", journal.folder / "grid.png")
    journal.add_file(64, journal.folder / "report.md")
    assert sent(journal) == 2
    events = read(journal.folder / "tensorboard")
    (value,) = events.Scalars("student/loss")
    assert (value.step, value.value, value.wall_time) == (64, 0.5, pytest.approx(record.time))
    (picture,) = events.Images("samples")
    assert (picture.step, picture.width, picture.height) == (64, 8, 6)
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    assert "Report" in texts["report.md/text_summary"]
    assert "trial" in texts["config/text_summary"]
    assert "secret" not in texts["config/text_summary"]


def test_a_lost_cursor_doubles_nothing(journal, sent):
    journal.add_metrics(64, {"student/loss": 0.5})
    journal.add_picture(64, "samples", journal.folder / "grid.png")
    sent(journal)
    for file in (journal.folder / FOLDER).glob("*.json"):
        file.unlink()
    journal.add_metrics(128, {"student/loss": 0.25})
    assert sent(journal) == 1
    assert scalars(journal.folder / "tensorboard") == [(64, 0.5), (128, 0.25)]
    assert len(read(journal.folder / "tensorboard").Images("samples")) == 1


def test_what_a_resumed_run_took_back_is_gone(journal, sent, monkeypatch):
    for images, time in ((64, 1.0), (128, 2.0)):
        monkeypatch.setattr("freeflow_core.interfaces.journal.now", lambda time=time: time)
        journal.add_metrics(images, {"student/loss": float(images)})
    sent(journal)
    journal.cut(64)
    monkeypatch.setattr("freeflow_core.interfaces.journal.now", lambda: 3.0)
    journal.add_metrics(128, {"student/loss": 7.0})
    sent(journal)
    assert scalars(journal.folder / "tensorboard") == [(64, 64.0), (128, 7.0)]


def test_runs_of_one_name_share_a_logdir(journal, sent, tmp_path):
    mine = tmp_path / "all" / "first-other"
    mine.mkdir(parents=True)
    (mine / "events.out.tfevents.1.host").write_bytes(b"somebody else's")
    journal.add_metrics(64, {"student/loss": 0.5})
    sent(journal, logdir=tmp_path / "all")
    assert scalars(tmp_path / "all" / f"first-{journal.status()['key']}") == [(64, 0.5)]
    assert (mine / "events.out.tfevents.1.host").read_bytes() == b"somebody else's"


def test_without_the_package_the_install_line_is_named(journal, sent, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'freeflow-distill\[tensorboard\]'"):
        sent(journal)
