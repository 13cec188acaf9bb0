"""The cache: where files lie, who may write, what is believed."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import filelock
import pytest
from weights_server import Answer, content, sha256

from freeflow_core.errors import DownloadError, Interrupted
from freeflow_core.plugin import WeightFile
from freeflow_core.weights import TransferOptions, WeightStore, cache_folder
from freeflow_core.weights.cache import Content, Place, Record

BODY = content()
OPTIONS = TransferOptions(delays=(), chunk_bytes=500, lock_patience=20, lock_poll=0.01)
BY_HAND = WeightFile("shared", "Only on a file share.", "last.pt", sha256=sha256(BODY), source="https://example.org/x")


@pytest.fixture
def store(weights_cache):
    return WeightStore(weights_cache, OPTIONS)


@pytest.fixture
def tiny(server):
    return WeightFile("tiny", "Tiny.", "tiny.pt", url=server.serve("/tiny.pt", Answer(BODY)))


@pytest.fixture
def copy(tmp_path):
    path = tmp_path / "downloads" / "anything.bin"
    path.parent.mkdir()
    path.write_bytes(BODY)
    return path


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def place_by_hand(store, weight, data):
    path = store.path(weight)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


def test_the_folder_is_the_users_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("FREEFLOW_CACHE", raising=False)
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "xdg" / "freeflow"
    monkeypatch.setenv("FREEFLOW_CACHE", "~/here")
    assert cache_folder() == tmp_path / "here"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FREEFLOW_CACHE", "there/../relative")
    assert cache_folder() == tmp_path / "relative"


def test_no_two_weights_share_a_folder(tmp_path):
    one = WeightFile("a/b", "", "last.pt", url="https://example.org/one/last.pt")
    others = [
        replace(one, name="a-b"),
        replace(one, name="A/B"),
        replace(one, name="../../a/b"),
        replace(one, url="https://example.org/two/last.pt"),
        replace(one, url=None, repository="one/two", revision="v2"),
        replace(one, url=None, repository="one/two", filename="folder/last.pt"),
        replace(one, name=""),
    ]
    folders = [Place.of(weight, tmp_path).file.parent for weight in (one, *others)]
    assert len({str(folder).lower() for folder in folders}) == len(folders)  # no file system mixes them up
    assert {folder.parent for folder in folders} == {tmp_path / "weights"}
    assert {Place.of(weight, tmp_path).file.name for weight in (one, *others)} == {"last.pt"}


def test_a_file_placed_by_hand_is_checked_once(store, monkeypatch):
    path = place_by_hand(store, BY_HAND, BODY)
    assert store.fetch(BY_HAND) == path
    monkeypatch.setattr("freeflow_core.weights.store.read_content", None)  # a second reading would fail
    assert store.fetch(BY_HAND) == path


def test_a_read_only_cache_can_be_read(store, monkeypatch):
    path = place_by_hand(store, BY_HAND, BODY)

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Record, "write", refuse)
    assert store.fetch(BY_HAND) == path


def test_checking_does_not_outdo_a_process_that_replaces_the_file(store, tiny, monkeypatch):
    path = place_by_hand(store, tiny, content(5000, 1))
    newer = Record(size=5000, sha256=sha256(BODY), origin="elsewhere")

    def replaced_meanwhile(*arguments):
        newer.write(Place(path).record)
        return Content(5000, sha256(content(5000, 1)), is_page=False)

    monkeypatch.setattr("freeflow_core.weights.store.read_content", replaced_meanwhile)
    store.find(tiny)
    assert Record.read(Place(path).record) == newer


def test_a_new_publication_is_fetched_and_replaces_the_old_one_whole(store, tiny, server):
    path = store.fetch(tiny)
    new = content(5000, 1)
    server.serve("/tiny.pt", Answer(new, cut=1000), Answer(new))
    with pytest.raises(DownloadError, match="broke"):
        store.fetch(replace(tiny, sha256=sha256(new)))
    assert path.read_bytes() == BODY  # still whole, for the older declaration
    assert store.fetch(tiny) == path
    assert store.fetch(replace(tiny, sha256=sha256(new))).read_bytes() == new
    assert [name for name in names(store.folder) if not name.endswith(".sha256")] == ["tiny.pt", "tiny.pt.json"]


def test_offline_names_the_place_and_the_way_around(store, tiny, server, monkeypatch):
    monkeypatch.setenv("FREEFLOW_OFFLINE", "yes")
    with pytest.raises(DownloadError, match=f"FREEFLOW_OFFLINE forbids.*{tiny.url}"):
        store.fetch(tiny)
    assert not store.folder.exists()
    place_by_hand(store, tiny, BODY)  # as the message says
    assert store.fetch(tiny).read_bytes() == BODY
    assert server.requests == []


def test_a_local_file_is_copied_in(store, copy):
    seen = []
    path = store.add(BY_HAND, copy, on_progress=lambda done, total: seen.append((done, total)))
    assert path == store.path(BY_HAND) == store.fetch(BY_HAND)
    assert path.read_bytes() == copy.read_bytes() == BODY
    assert seen[-1] == (5000, 5000)
    assert names(store.folder) == ["last.pt", "last.pt.json"]
    record = json.loads(path.with_name("last.pt.json").read_text())
    assert record == {"size": 5000, "sha256": sha256(BODY), "origin": str(copy)}


def test_a_file_that_shrank_or_was_wrong_from_the_start_is_refused(store, tiny, monkeypatch):
    path = store.fetch(tiny)
    path.write_bytes(BODY[:-1])
    with pytest.raises(DownloadError, match=r"expected SHA-256 .*fetch tiny --force"):
        store.fetch(tiny)
    monkeypatch.setenv("FREEFLOW_OFFLINE", "1")
    with pytest.raises(DownloadError, match=rf"can only be downloaded.* {path}"):
        store.fetch(tiny, force=True)
    monkeypatch.delenv("FREEFLOW_OFFLINE")
    assert store.fetch(tiny, force=True).read_bytes() == BODY
    place_by_hand(store, BY_HAND, b"<html>Log in</html>")
    with pytest.raises(DownloadError, match="--force"):
        store.fetch(BY_HAND)


def test_too_little_space_is_told_before_anything_is_written(store, tiny, copy, monkeypatch):
    monkeypatch.setattr("freeflow_core.weights.failures.shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    for attempt in (lambda: store.add(BY_HAND, copy), lambda: store.fetch(tiny)):
        with pytest.raises(DownloadError, match="are free"):
            attempt()
    assert names(store.folder) == []


@pytest.mark.parametrize(
    ("data", "wanted", "message"),
    [
        (content(5000, 1), BY_HAND, "expected SHA-256"),
        (BODY, replace(BY_HAND, size=4), "has 5,000 bytes, but"),
        (b"<!doctype html>", replace(BY_HAND, sha256=None), "is a web page"),
    ],
)
def test_a_wrong_local_file_is_refused(store, copy, data, wanted, message):
    copy.write_bytes(data)
    with pytest.raises(DownloadError, match=message):
        store.add(wanted, copy)
    assert names(store.folder) == []


def test_verify_reads_the_file_again(store, tiny):
    with pytest.raises(DownloadError, match=r"not in the cache.*freeflow fetch tiny"):
        store.verify(tiny)
    path = store.fetch(tiny)
    assert store.verify(tiny) == sha256(BODY)
    damaged = bytearray(BODY)
    damaged[2500] ^= 1
    path.write_bytes(damaged)
    assert store.fetch(tiny) == path  # same size: only verify reads it
    with pytest.raises(DownloadError, match=f"expected SHA-256 {sha256(BODY)}, got"):
        store.verify(tiny)


_RANK = """
import logging, sys
from pathlib import Path
from freeflow_core.plugin import WeightFile
from freeflow_core.weights import TransferOptions, WeightStore
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
weight = WeightFile("tiny", "Tiny.", "tiny.pt", url=sys.argv[1])
path = WeightStore(Path(sys.argv[2]), TransferOptions(delays=(), lock_poll=0.01)).fetch(weight)
assert "torch" not in sys.modules
print(len(path.read_bytes()), flush=True)
"""


def test_processes_download_once(store, tiny, server):
    gate = threading.Event()
    server.serve("/tiny.pt", Answer(BODY, cut=1500, gate=gate))

    def start():
        command = [sys.executable, "-c", _RANK, tiny.url, str(store.folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})

    first = start()
    try:
        assert server.arrived.acquire(timeout=60)
        second = start()
        assert second.stdout.readline() == "Waiting for another process, which is fetching the weights 'tiny'.\n"
        gate.set()
        assert second.communicate(timeout=60)[0] == "5000\n"
        assert first.communicate(timeout=60)[0] == "5000\n"
    finally:
        gate.set()
        first.kill()
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(server.requests) == 1


def test_a_process_that_dies_leaves_no_lock(store, tiny, server):
    gate = threading.Event()
    server.serve("/tiny.pt", Answer(BODY, cut=4096, gate=gate), Answer(BODY))
    code = _RANK.replace("delays=()", "delays=(), chunk_bytes=512")
    victim = subprocess.Popen([sys.executable, "-c", code, tiny.url, str(store.folder)])
    try:
        assert server.arrived.acquire(timeout=60)
        for _ in range(4000):
            if store.status(tiny).partial == 4096:
                break
            threading.Event().wait(0.005)
    finally:
        victim.kill()
        victim.wait(20)
        gate.set()
    assert store.fetch(tiny).read_bytes() == BODY
    assert server.ranges() == [None, "bytes=4096-"]


def test_waiting_ends_when_the_other_process_stands_still(store, tiny):
    place = Place.of(tiny, store.folder)
    place.file.parent.mkdir(parents=True)
    impatient = WeightStore(store.folder, replace(OPTIONS, lock_patience=0.05))
    with (
        filelock.FileLock(place.lock),
        pytest.raises(DownloadError, match=r"has not got on with the weights 'tiny' for"),
    ):
        impatient.fetch(tiny)
    assert impatient.fetch(tiny).read_bytes() == BODY


def test_ctrl_c_while_another_process_downloads(store, tiny, server):
    def press(done, total):
        raise KeyboardInterrupt

    place = Place.of(tiny, store.folder)
    place.file.parent.mkdir(parents=True)
    place.partial.write_bytes(BODY[:2000])  # the other's
    with filelock.FileLock(place.lock), pytest.raises(Interrupted):
        store.fetch(tiny, on_progress=press)
    assert (server.requests, place.partial.read_bytes()) == ([], BODY[:2000])
