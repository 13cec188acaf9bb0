"""Downloads that meet everything a network can do, on a file server of their own."""

import shutil
import socket
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import requests
from weights_server import Answer, content, sha256

from freeflow_core.errors import DownloadError, Interrupted
from freeflow_core.plugin import WeightFile
from freeflow_core.weights import TransferOptions, WeightStore
from freeflow_core.weights.download import LoggedProgress, _Session

BODY = content()
AT_ONCE = TransferOptions(read_timeout=5, delays=(), chunk_bytes=500, lock_patience=5, lock_poll=0.01)
PATIENT = replace(AT_ONCE, delays=(0.0, 0.0))
PATH = "/tiny.pt"
DATE = "Sat, 21 Nov 2026 00:00:00 GMT"


@pytest.fixture
def store(weights_cache):
    return lambda options=AT_ONCE: WeightStore(weights_cache, options)


def weight(server, **fields):
    return WeightFile("tiny", "Tiny.", "tiny.pt", url=server.address + PATH, **fields)


def left_behind(store):
    """All files in the cache but the empty locks."""
    files = [path for path in store.folder.rglob("*") if path.is_file()]
    assert all(path.stat().st_size == 0 for path in files if path.suffix == ".lock")
    return sorted(path.name for path in files if path.suffix not in (".lock", ".sha256"))


def interrupt(server, store, cut=2000, **answer):
    """A download that the server broke off after ``cut`` bytes; the next request gets the same answer, whole."""
    server.serve(PATH, Answer(BODY, cut=cut, **answer), Answer(BODY, **answer))
    with pytest.raises(DownloadError, match="the same command goes on"):
        store.fetch(weight(server))
    assert left_behind(store) == ["tiny.pt.partial", "tiny.pt.partial.json"]
    return weight(server)


def test_a_download_is_whole_checked_and_recorded(server, store):
    server.serve(PATH, Answer(BODY))
    seen = []
    path = store().fetch(
        weight(server, size=len(BODY), sha256=sha256(BODY)), on_progress=lambda done, total: seen.append((done, total))
    )
    assert path.read_bytes() == BODY
    assert left_behind(store()) == ["tiny.pt", "tiny.pt.json"]
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))
    assert seen == sorted(seen)
    assert store().fetch(weight(server, size=len(BODY), sha256=sha256(BODY))) == path
    assert len(server.requests) == 1
    assert server.requests[0][1]["User-Agent"].startswith("freeflow/")
    assert server.requests[0][1]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("answer", "known", "range_asked", "proof"),
    [
        ({}, None, "bytes=2000-", '"one"'),
        ({"etag": 'W/"one"', "last_modified": DATE}, None, "bytes=2000-", DATE),  # a weak tag proves nothing
        ({"etag": None}, sha256(BODY), "bytes=2000-", None),
        ({"etag": None}, None, None, None),
    ],
)
def test_the_next_call_goes_on_where_it_broke_if_the_version_is_certain(
    server, store, answer, known, range_asked, proof
):
    wanted, seen = replace(interrupt(server, store(), **answer), sha256=known), []
    assert store().fetch(wanted, on_progress=lambda done, total: seen.append(done)).read_bytes() == BODY
    assert server.ranges() == [None, range_asked]
    assert server.requests[1][1].get("If-Range") == proof
    assert seen[0] == (2000 if range_asked else 0)
    assert left_behind(store()) == ["tiny.pt", "tiny.pt.json"]


def test_the_hash_runs_over_what_was_resumed(server, store):
    interrupt(server, store())
    partial = next(store().folder.rglob("*.partial"))
    partial.write_bytes(b"?" + partial.read_bytes()[1:])
    with pytest.raises(DownloadError, match=f"expected SHA-256 {sha256(BODY)}, got"):
        store().fetch(weight(server, sha256=sha256(BODY)))
    assert server.ranges()[-1] == "bytes=2000-"
    assert left_behind(store()) == []


def test_attempts_within_one_call_resume_too(server, store):
    server.serve(PATH, Answer(BODY, cut=1000), Answer(BODY, cut=1000), Answer(BODY, cut=1000), Answer(BODY))
    once = replace(AT_ONCE, delays=(0.0,))  # one new attempt, but each gets further than the one before
    assert store(once).fetch(weight(server)).read_bytes() == BODY
    assert server.ranges() == [None, "bytes=1000-", "bytes=2000-", "bytes=3000-"]


def test_a_part_that_was_not_asked_for_is_not_appended(server, store):
    wanted = interrupt(server, store())
    unasked = Answer(BODY, status=206, headers={"Content-Range": "bytes 0-4999/5000"})
    server.serve(PATH, unasked, Answer(BODY))
    assert store(PATIENT).fetch(wanted).read_bytes() == BODY
    assert server.ranges() == [None, "bytes=2000-", None]


@pytest.mark.parametrize(("obey_if_range", "size"), [(True, 4000), (False, 4000), (False, 1500)])
def test_a_file_that_changed_is_never_spliced(server, store, obey_if_range, size):
    wanted = interrupt(server, store())
    other = content(size, seed=1)
    server.serve(PATH, Answer(other, etag='"two"', obey_if_range=obey_if_range))
    assert store(PATIENT).fetch(wanted).read_bytes() == other
    assert server.ranges() == [None, "bytes=2000-"] + [None] * (not obey_if_range)


def test_a_complete_part_needs_no_request(server, store):
    wanted = interrupt(server, store())
    next(store().folder.rglob("*.partial")).write_bytes(BODY)  # as after a crash just before the new name
    assert store().fetch(wanted).read_bytes() == BODY
    assert len(server.requests) == 1


@pytest.mark.parametrize("states_length", [True, False])
def test_truncated(server, store, states_length):
    server.serve(PATH, Answer(BODY, cut=3000, states_length=states_length))
    message = "broke before all" if states_length else "ended too early: 3,000 of 5,000 bytes"
    with pytest.raises(DownloadError, match=message):
        store().fetch(weight(server, size=len(BODY)))
    assert left_behind(store()) == ["tiny.pt.partial", "tiny.pt.partial.json"]


@pytest.mark.parametrize("states_length", [True, False])
def test_another_size_is_refused_before_all_has_arrived(server, store, states_length):
    server.serve(PATH, Answer(content(100_000), states_length=states_length))
    seen = []
    with pytest.raises(DownloadError, match="another file"):
        store().fetch(weight(server, size=4000), on_progress=lambda done, total: seen.append(done))
    assert max(seen, default=0) <= 4000
    assert left_behind(store()) == []


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (502, 3)])
def test_a_refusal_is_told_at_once_and_a_failure_after_more_attempts(server, store, status, tries):
    server.serve(PATH, Answer(status=status))
    with pytest.raises(DownloadError, match=rf"{status}.*https://example\.org/w and run `freeflow fetch tiny --from"):
        store(PATIENT).fetch(weight(server, source="https://example.org/w"))
    assert len(server.requests) == tries
    assert left_behind(store()) == []


def test_pauses_grow_and_a_server_may_ask_for_longer_ones(server, store, monkeypatch):
    pauses = []
    monkeypatch.setattr("freeflow_core.weights.download.time", SimpleNamespace(sleep=pauses.append))
    busy = Answer(status=429, headers={"Retry-After": "7"})
    server.serve(PATH, Answer(status=500), busy, replace(busy, headers={"Retry-After": "9999"}), Answer(BODY))
    store(replace(AT_ONCE, delays=(1.0, 2.0, 4.0), max_delay=60.0)).fetch(weight(server))
    assert pauses == [1.0, 7.0, 60.0]


def test_no_network(store, monkeypatch):
    def no_name(*arguments, **more):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    monkeypatch.setenv("NO_PROXY", "*")
    lost = WeightFile("tiny", "Tiny.", "tiny.pt", url="https://weights.example.org/tiny.pt")
    with pytest.raises(DownloadError, match=r"weights\.example\.org cannot be found"):
        store().fetch(lost)


@pytest.mark.parametrize("sent", [0, 2000])
def test_a_silent_server(server, store, sent):
    gate = threading.Event()
    server.serve(PATH, Answer(BODY, cut=sent, gate=gate))
    try:
        with pytest.raises(DownloadError, match="fell silent"):
            store(replace(AT_ONCE, read_timeout=0.2)).fetch(weight(server))
    finally:
        gate.set()


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"...", content_type="text/html; charset=utf-8"),
        Answer(b"\n <!DOCTYPE html><title>Confirm the download</title>"),
    ],
)
def test_web_pages_are_no_weights(server, store, answer):
    server.serve(PATH, answer)
    with pytest.raises(DownloadError, match="is a web page"):
        store().fetch(weight(server))
    assert left_behind(store()) == []


def test_ctrl_c_keeps_what_has_arrived(server, store):
    def press(done, total):
        if done >= 1500:
            raise KeyboardInterrupt

    server.serve(PATH, Answer(BODY))
    with pytest.raises(Interrupted, match=r"1\.5 KiB of 4\.9 KiB are kept in"):
        store().fetch(weight(server), on_progress=press)
    assert left_behind(store()) == ["tiny.pt.partial", "tiny.pt.partial.json"]
    assert store().status(weight(server)).partial == 1500
    assert store().fetch(weight(server)).read_bytes() == BODY
    assert server.ranges() == [None, "bytes=1500-"]


def test_a_folder_that_cannot_be_written(server, store, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    server.serve(PATH, Answer(BODY))
    with pytest.raises(DownloadError, match=r"cannot be used: .*FREEFLOW_CACHE"):
        store().fetch(weight(server))


def test_a_log_tells_how_far_a_download_has_come(caplog):
    clock = iter([0.0, 1.0, 11.0, 12.0, 22.0])
    told = LoggedProgress("tiny", interval=10.0, now=lambda: next(clock))
    with caplog.at_level("INFO", "freeflow"):
        for done in (0, 1000, 2000, 4000):
            told(done, 5000)
    assert ["20%" in r.getMessage() or "80%" in r.getMessage() for r in caplog.records] == [True, True]


def test_a_file_of_which_nothing_is_known_has_a_cap(server, store):
    for states_length in (True, False):
        server.serve(PATH, Answer(BODY, states_length=states_length))
        capped = store(replace(AT_ONCE, max_bytes=len(BODY) - 1))
        with pytest.raises(DownloadError, match="--max-gib"):
            capped.fetch(weight(server))
        assert left_behind(capped) == []
        assert capped.fetch(weight(server, sha256=sha256(BODY))).read_bytes() == BODY
        shutil.rmtree(capped.folder)


@pytest.mark.parametrize(
    "headers",
    [{"Content-Encoding": "gzip"}, {"Content-Length": "-5"}, {"Content-Length": "many"}, {"Content-Length": "9" * 40}],
)
def test_an_answer_that_is_not_the_file_itself_is_refused(server, store, headers):
    server.serve(PATH, Answer(BODY, headers=headers, states_length=False))
    with pytest.raises(DownloadError, match=r"encoded as|states a length"):
        store().fetch(weight(server))
    assert left_behind(store()) == []


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/tiny.pt"])
def test_a_redirect_leaves_the_web_for_nothing(server, store, target):
    server.serve(PATH, Answer(status=302, headers={"Location": target}))
    with pytest.raises(DownloadError, match="not followed"):
        store().fetch(weight(server))


def test_a_redirect_gives_up_no_encryption():
    answer = requests.Response()
    answer.status_code, answer.url = 302, "https://example.org/a"
    answer.headers["Location"] = "http://example.org/b"
    with pytest.raises(DownloadError, match="from https to http"):
        _Session().get_redirect_target(answer)
    answer.headers["Location"] = "/c"
    assert _Session().get_redirect_target(answer) == "/c"


def test_the_first_download_is_remembered(server, store):
    server.serve(PATH, Answer(BODY))
    path = store().fetch(weight(server))
    path.unlink()
    path.with_name("tiny.pt.json").unlink()
    server.serve(PATH, Answer(content(seed=1)))
    with pytest.raises(DownloadError, match="--force"):
        store().fetch(weight(server))
    assert left_behind(store()) == []
    assert store().fetch(weight(server), force=True).read_bytes() == content(seed=1)
    path.unlink()
    assert store().fetch(weight(server)).read_bytes() == content(seed=1)
