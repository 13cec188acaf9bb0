"""Weights on the hub, from a stand-in for it: redirects, tokens, stated hashes, its error codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from weights_server import Answer, FileServer, content, file_server, sha256

from freeflow_core.errors import DownloadError, PluginError
from freeflow_core.plugin import WeightFile
from freeflow_core.weights import TransferOptions, WeightStore

BODY = content()
OPTIONS = TransferOptions(delays=(), chunk_bytes=500)
WEIGHT = WeightFile("large", "Large.", "folder/last.pt", repository="somebody/model", revision="v1")
PATH = "/somebody/model/resolve/v1/folder/last.pt"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with file_server() as server:
        for name in ("FREEFLOW_OFFLINE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_ENDPOINT", f"{server.address}/")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server


@pytest.fixture
def files() -> Iterator[FileServer]:
    """Where the hub keeps its large files: another host, as far as tokens are concerned."""
    with file_server() as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path, OPTIONS)


def redirect(hub: FileServer, files: FileServer, stated: str) -> None:
    location = {"Location": f"{files.address}/blob", "X-Linked-Etag": f'"{stated}"'}
    hub.serve(PATH, Answer(status=302, etag=None, headers=location))


def test_a_large_file_is_followed_checked_and_resumed(hub, files, store):
    redirect(hub, files, sha256(BODY))
    files.serve("/blob", Answer(BODY, cut=2000), Answer(BODY))
    with pytest.raises(DownloadError, match="broke"):
        store.fetch(WEIGHT)
    path = store.fetch(WEIGHT)
    assert path.read_bytes() == BODY
    assert path.name == "last.pt"
    assert files.ranges() == [None, "bytes=2000-"]
    assert [path for path, _ in hub.requests] == [PATH, PATH]  # nothing else is told or asked
    assert hub.requests[0][1]["Authorization"] == "Bearer hf_secret"
    assert all("Authorization" not in headers for _, headers in files.requests)


def test_the_hash_that_the_hub_states_is_held_to(hub, files, store):
    redirect(hub, files, "1" * 64)
    files.serve("/blob", Answer(BODY))
    with pytest.raises(DownloadError, match=f"expected SHA-256 {'1' * 64}, got"):
        store.fetch(WEIGHT)
    assert not [path for path in store.folder.rglob("last.pt*") if path.suffix != ".lock"]


def test_a_small_file_comes_without_redirect(hub, store):
    hub.serve(
        PATH, Answer(BODY, headers={"X-Linked-Etag": '"0123456789abcdef0123456789abcdef01234567"'})
    )  # not SHA-256
    assert store.fetch(WEIGHT).read_bytes() == BODY


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "EntryNotFound", r"has no folder/last\.pt in somebody/model, revision 'v1' \(404 EntryNotFound"),
        (401, "RepoNotFound", r"does not let you read .* \(401 RepoNotFound\).*HF_TOKEN"),
        (403, "GatedRepo", r"asks to accept its conditions first.*hf auth login"),
    ],
)
def test_refusals_say_what_to_do(hub, store, status, code, message):
    hub.serve(PATH, Answer(status=status, headers={"X-Error-Code": code}))
    with pytest.raises(DownloadError, match=message) as caught:
        store.fetch(WEIGHT)
    assert "hf_secret" not in str(caught.value)


def test_a_repository_that_cannot_exist(hub, store):
    with pytest.raises(DownloadError, match=r"no repository of the hub.*mistake of the plugin"):
        store.fetch(WeightFile("odd", "Odd.", "a.pt", repository="a/b/c"))


@pytest.mark.parametrize(
    ("variable", "blames"), [("HF_HUB_OFFLINE", "HF_HUB_OFFLINE"), ("FREEFLOW_OFFLINE", "FREEFLOW_OFFLINE")]
)
def test_offline(hub, store, monkeypatch, variable, blames):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DownloadError, match=f"{blames} forbids.*{hub.address}{PATH} by hand"):
        store.fetch(WEIGHT)
    assert hub.requests == []


def test_our_own_switch_outweighs_the_hubs(hub, store, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("FREEFLOW_OFFLINE", "0")
    hub.serve(PATH, Answer(BODY))
    assert store.fetch(WEIGHT).read_bytes() == BODY


LISTED = WeightFile("listed", "Listed.", "listed.pt", repository="somebody/model", pattern=r"^(?!.*sit).*256")
LISTING = "/api/models/somebody/model/revision/main"


def listing(hub: FileServer, *paths: str) -> None:
    siblings = [{"rfilename": path} for path in paths]
    hub.serve(LISTING, Answer(json.dumps({"siblings": siblings}).encode(), content_type="application/json"))


def test_a_file_of_unknown_name_is_found_by_its_pattern(hub, store):
    listing(hub, "README.md", "a-256.md", "large_512.pt", "SiT_256.pt", "sub/Large_256.pth")
    hub.serve("/somebody/model/resolve/main/sub/Large_256.pth", Answer(BODY))
    path = store.fetch(LISTED)
    assert path.read_bytes() == BODY
    assert path.name == "listed.pt"
    assert all(headers["Authorization"] == "Bearer hf_secret" for _, headers in hub.requests)
    assert store.fetch(LISTED) == path
    assert len(hub.requests) == 2, "the second call finds it in the cache and asks nobody"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("a_256.pt", "b_256.pt"), r"2 of the weight files.*There are: a_256.pt, b_256.pt"),
        (("a_512.pt", "README_256.md"), r"none of the weight files.*There are: a_512.pt\. "),
        ((), r"There are: none\. "),
        (tuple(f"x{i:02}.pt" for i in range(20)), r"x11.pt and 8 more\. "),
    ],
)
def test_a_pattern_that_does_not_mean_one_file_lists_what_there_is(hub, store, paths, message):
    listing(hub, *paths)
    with pytest.raises(DownloadError, match=message):
        store.fetch(LISTED)
    assert [path for path, _ in hub.requests] == [LISTING]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(b"<html>", content_type="text/html"), "other than a list of files"),
        (Answer(b'{"siblings": 3}', content_type="application/json"), "other than a list of files"),
        (Answer(status=404), "The hub has no"),
        (Answer(status=503), "cannot deliver"),
    ],
)
def test_a_repository_that_cannot_be_listed_is_explained(hub, store, answer, message):
    hub.serve(LISTING, answer)
    with pytest.raises(DownloadError, match=message):
        store.fetch(LISTED)


def test_no_network_is_said_of_a_listing_too(hub, store, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="refused the connection"):
        store.fetch(LISTED)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"pattern": "256"}, "a repository to look in"), ({"pattern": "(", "repository": "a/b"}, "a regular expression")],
)
def test_a_pattern_that_cannot_work_is_refused(options, message):
    with pytest.raises(PluginError, match=message):
        WeightFile("x", "X.", "x.pt", **options)
