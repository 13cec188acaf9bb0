"""The writer: what an end at any moment leaves, and what the next start makes of it."""

import json
import resource
import signal
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock

from freeflow_core.errors import ConfigError, FreeflowError, Interrupted
from freeflow_core.evaluation.sampling import SampleBatch
from freeflow_core.tools.sample_files import writer
from freeflow_core.tools.sample_files.files import Parts, sample_format
from freeflow_core.tools.sample_files.writer import SampleWriter, Team
from freeflow_core.types import Guidance

CPU = torch.device("cpu")
SETTINGS = {"seed": 0, "labels": "balanced"}


class Counting:
    """Stands for the generator: image i shows i; ``drawn`` are the indices asked for; ``event`` happens at an index."""

    num_steps = 25
    sample_shape = (3, 4, 4)

    def __init__(self, at=-1, event=None):
        self.drawn: list[int] = []
        self._at, self._event = at, event

    def batch(self, index, ahead=None):
        self.drawn += index.tolist()
        if self._at in index.tolist():
            self._event()
        images = (index % 256).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        return SampleBatch(index, images, images, images, index % 10, Guidance(index), 2.0, 0.01 * len(index))


def write(folder, generator, num=300, batch_size=32, kind="npz", settings=None, team=None, told=None):
    form = sample_format(kind, (3, 4, 4))
    team = team or Team(CPU)
    return SampleWriter(folder, num, form, lambda: settings or SETTINGS, batch_size, team, told).write(generator)


def fail(error):
    def event():
        raise error

    return event


def test_all_samples_are_there_in_order_with_their_labels_and_nothing_else(tmp_path):
    told = []
    result = write(tmp_path / "s", Counting(), told=lambda done, total: told.append((done, total)))
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["samples.json", "samples.npz"]
    with np.load(tmp_path / "s" / "samples.npz") as found:
        assert (found["arr_0"].shape, found["arr_0"].dtype) == ((300, 4, 4, 3), np.uint8)
        assert found["arr_0"][:, 0, 0, 0].tolist() == [i % 256 for i in range(300)]
        assert found["arr_1"].tolist() == [i % 10 for i in range(300)]
        assert found["arr_1"].dtype == np.int64
    assert (result.reused, result.evaluations) == (0, 2.0)
    assert result.seconds_per_image == pytest.approx(0.01)
    assert result.files == [tmp_path / "s" / "samples.npz"]
    assert told == [(min(32 * (i + 1), 300), 300) for i in range(10)]
    stored = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert (stored["complete"], stored["settings"]) == (True, SETTINGS)


def test_memory_holds_a_block_however_many_there_are(tmp_path):
    class Large(Counting):
        def batch(self, index, ahead=None):
            batch = super().batch(index)
            return replace(batch, images=batch.images.repeat(1, 1, 8, 8))

    write(tmp_path / "first", Counting(), num=64)  # what the first call imports is not a block's
    tracemalloc.start()
    write(tmp_path, Large(), num=6400)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    block = 64 * 3 * 32 * 32
    assert (tmp_path / "samples.npz").stat().st_size > 100 * block
    assert peak < 15 * block


@pytest.mark.parametrize("kind", ["npz", "png", "webp"])
def test_going_on_draws_what_is_missing_and_ends_with_the_same_bytes(tmp_path, kind):
    write(tmp_path / "whole", Counting(), kind=kind)
    with pytest.raises(Interrupted, match="192 of 300"):
        write(tmp_path / "parts", Counting(200, fail(KeyboardInterrupt())), kind=kind)
    assert (tmp_path / "parts" / "parts").is_dir()
    rest = Counting()
    result = write(tmp_path / "parts", rest, kind=kind, batch_size=7)  # which changes no block
    assert (rest.drawn, result.reused) == (list(range(192, 300)), 192)
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "parts").iterdir())
    for name in set(names) - {"samples.json"}:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    again = Counting()
    result = write(tmp_path / "whole", again, kind=kind)
    assert (again.drawn, result.reused, result.evaluations) == ([], 300, 2.0)


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_by_name_and_nothing_is_lost(tmp_path, finished):
    if finished:
        write(tmp_path, Counting())
    else:
        with pytest.raises(Interrupted):
            write(tmp_path, Counting(299, fail(KeyboardInterrupt())))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="seed: 0 -> 7"):
        write(tmp_path, Counting(), settings={"seed": 7, "labels": "random"})
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("kind", "name"), [("npz", "samples.npz"), ("png", "000003.png")])
def test_files_of_somebody_else_are_never_overwritten(tmp_path, kind, name):
    (tmp_path / name).write_bytes(b"precious")
    (tmp_path / "notes.txt").write_text("beside it is fine")
    with pytest.raises(ConfigError, match="already holds samples"):
        write(tmp_path, Counting(), kind=kind)
    assert (tmp_path / name).read_bytes() == b"precious"
    with pytest.raises(ConfigError, match="is a file"):
        write(tmp_path / name, Counting())


def test_an_end_before_the_first_block_leaves_nothing(tmp_path):
    for error in (ConfigError("no such class"), KeyboardInterrupt()):
        with pytest.raises((ConfigError, Interrupted)):
            write(tmp_path / "s", Counting(3, fail(error)))
        assert not (tmp_path / "s").exists()
    write(tmp_path / "s", Counting(), settings={"seed": 9})


def test_the_first_ctrl_c_ends_after_the_batch_in_hand(tmp_path):
    generator = Counting(70, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted, match="64 of 300"):
        write(tmp_path, generator)
    assert generator.drawn == list(range(96)), "the batch in hand is finished, the next not begun"


@contextmanager
def largest_file(num_bytes):
    """Writing more than this to any file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("limit", "kept"), [(2000, None), (6000, "300 of 300")])
def test_a_full_disk_is_told_and_the_finished_blocks_stay(tmp_path, limit, kept):
    """A block is 64 x 48 bytes and some; all samples together are 14,400."""
    with largest_file(limit), pytest.raises(FreeflowError, match=kept or "No samples"):
        write(tmp_path, Counting())
    assert not list(tmp_path.rglob(".*partial"))
    assert not (tmp_path / "samples.npz").exists()
    rest = Counting()
    write(tmp_path, rest)
    assert len(rest.drawn) == (0 if kept else 300)
    assert np.load(tmp_path / "samples.npz")["arr_0"].shape == (300, 4, 4, 3)


def test_a_picture_that_was_deleted_is_drawn_again_with_its_block(tmp_path):
    with pytest.raises(Interrupted):
        write(tmp_path, Counting(250, fail(KeyboardInterrupt())), kind="png")
    (tmp_path / "000070.png").unlink()
    rest = Counting()
    write(tmp_path, rest, kind="png")
    assert rest.drawn == [*range(64, 128), *range(192, 300)]
    (tmp_path / "000007.png").unlink()
    again = Counting()
    write(tmp_path, again, kind="png")
    assert len(again.drawn) == 300, "the blocks are gone by now, so all is drawn again"
    assert (tmp_path / "000007.png").is_file()


def test_leftovers_of_a_killed_process_are_cleared(tmp_path):
    with pytest.raises(Interrupted):
        write(tmp_path, Counting(250, fail(KeyboardInterrupt())))
    (tmp_path / ".samples.npz.77.partial").write_bytes(b"half")
    (tmp_path / "parts" / ".block-000003.npz.77.partial").write_bytes(b"half")
    (tmp_path / "parts" / "failed-1.txt").write_text("killed")
    write(tmp_path, Counting())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["samples.json", "samples.npz"]


class LoneMember(Team):
    """One of two processes, without the other."""

    def from_main(self, make):
        return make()


def test_a_process_that_fails_tells_the_others_and_they_stop(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        write(tmp_path, Counting(70, fail(RuntimeError("out of memory"))), team=LoneMember(CPU, 1, 2))

    class Later(LoneMember):
        def from_main(self, make):
            result = make()
            (tmp_path / "parts").mkdir(exist_ok=True)
            (tmp_path / "parts" / "failed-1.txt").write_text("RuntimeError: out of memory.")
            return result

    generator = Counting()
    with pytest.raises(FreeflowError, match="because process 1 failed: RuntimeError: out of memory"):
        write(tmp_path, generator, team=Later(CPU, 0, 2))
    assert generator.drawn == []
    assert not (tmp_path / "parts" / "failed-0.txt").exists(), "an echo would hide who failed first"


def test_jobs_that_know_nothing_of_each_other_share_the_blocks(tmp_path):
    """A job of the same array, which is started while this one draws its second block and has its third."""
    other = Counting(299, fail(KeyboardInterrupt()))

    def begin_another():
        with Parts(tmp_path).claimed(2), pytest.raises(Interrupted):
            write(tmp_path, other)

    mine = Counting(70, begin_another)
    result = write(tmp_path, mine)
    assert other.drawn == [*range(192, 300)], "what nobody had, until it was stopped"
    assert mine.drawn == [*range(192), *range(256, 300)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["samples.json", "samples.npz"]
    with np.load(result.files[0]) as found:
        assert found["arr_0"][:, 0, 0, 0].tolist() == [i % 256 for i in range(300)]


def test_the_block_of_a_killed_job_is_drawn_by_another(tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    claim = FileLock(tmp_path / "parts" / ".1.claim")
    claim.acquire()
    (tmp_path / "parts" / ".block-000001.npz.77.partial").write_bytes(b"of the other")
    monkeypatch.setattr(writer.time, "sleep", lambda seconds: claim.release())  # as the system does for the killed
    generator = Counting()
    write(tmp_path, generator)
    assert generator.drawn == [*range(64), *range(128, 300), *range(64, 128)]
