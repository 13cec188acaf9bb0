"""Weights on the hub, from a stand-in for it: redirects, tokens, stated hashes, its error codes."""

import json
from dataclasses import replace

import pytest
from weights_server import Answer, FileServer, content, sha256

from freeflow_core.errors import DownloadError
from freeflow_core.plugin import WeightFile
from freeflow_core.weights import TransferOptions, WeightStore

BODY = content()
WEIGHT = WeightFile("large", "Large.", "folder/last.pt", repository="somebody/model", revision="v1")
PATH = "/somebody/model/resolve/v1/folder/last.pt"


@pytest.fixture
def hub(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"{server.address}/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return server


@pytest.fixture
def files():
    """Where the hub keeps its large files: another host, as far as tokens are concerned."""
    with FileServer() as server:
        yield server


@pytest.fixture
def store(weights_cache):
    return WeightStore(weights_cache, TransferOptions(delays=(), chunk_bytes=500))


def redirect(hub, files, stated):
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


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "EntryNotFound", "somebody/model on the hub, revision 'v1' .404 EntryNotFound"),
        (401, "RepoNotFound", r"\(401 RepoNotFound\).*HF_TOKEN"),
    ],
)
def test_refusals_say_what_to_do(hub, store, status, code, message):
    hub.serve(PATH, Answer(status=status, headers={"X-Error-Code": code}))
    with pytest.raises(DownloadError, match=message) as caught:
        store.fetch(WEIGHT)
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "FREEFLOW_OFFLINE"])
def test_offline(hub, store, monkeypatch, variable):
    hub.serve(PATH, Answer(BODY))
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DownloadError, match=f"{variable} forbids.*{hub.address}{PATH} by hand"):
        store.fetch(WEIGHT)
    assert hub.requests == []
    monkeypatch.setenv("FREEFLOW_OFFLINE", "0")  # our own switch outweighs the hub's
    assert store.fetch(WEIGHT).read_bytes() == BODY


@pytest.fixture
def hub_cache(tmp_path):
    """Puts a file where `huggingface_hub` would have: a blob named by its digest, linked to from a snapshot."""

    def put(data, filename=WEIGHT.filename, revision=WEIGHT.revision):
        model = tmp_path / "hub" / "models--somebody--model"
        blob, link = model / "blobs" / sha256(data), model / "snapshots" / ("c" * 40) / filename
        for path in (blob, link, model / "refs" / revision):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link.symlink_to(blob)
        (model / "refs" / revision).write_text("c" * 40)
        return link

    return put


def test_a_file_of_the_users_hugging_face_cache_is_used_where_it_lies(hub, store, hub_cache, monkeypatch):
    monkeypatch.setenv("FREEFLOW_OFFLINE", "1")
    link = hub_cache(BODY)
    declared = replace(WEIGHT, size=len(BODY), sha256=sha256(BODY))
    assert store.find(declared) == store.fetch(declared) == store.fetch(WEIGHT) == link
    status = store.status(WEIGHT)
    assert (status.cached, status.path, status.size, status.sha256) == (True, link, len(BODY), sha256(BODY))
    assert store.verify(WEIGHT) == sha256(BODY)
    assert hub.requests == []
    link.resolve().write_bytes(BODY[::-1])
    with pytest.raises(DownloadError, match="expected SHA-256"):
        store.verify(WEIGHT)


@pytest.mark.parametrize("fields", [{"sha256": sha256(BODY)}, {"size": len(BODY)}, {"revision": "v2"}])
def test_another_version_in_the_hugging_face_cache_is_not_used(hub, store, hub_cache, fields):
    hub_cache(content(4000, seed=1))
    wanted = replace(WEIGHT, **fields)
    hub.serve(f"/somebody/model/resolve/{wanted.revision}/folder/last.pt", Answer(BODY))
    assert store.find(wanted) is None
    assert store.fetch(wanted).read_bytes() == BODY
    assert store.fetch(wanted).is_relative_to(store.folder)


def test_our_own_copy_comes_before_the_hugging_face_cache(hub, store, hub_cache):
    hub.serve(PATH, Answer(BODY))
    link = hub_cache(content(4000, seed=1))
    assert store.fetch(WEIGHT) == link
    assert store.fetch(WEIGHT, force=True).read_bytes() == BODY
    assert store.fetch(WEIGHT) == store.path(WEIGHT)


LISTED = WeightFile("listed", "Listed.", "listed.pt", repository="somebody/model", pattern=r"^(?!.*sit).*256")
LISTING = "/api/models/somebody/model/revision/main"


def listing(hub, *paths):
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
        (Answer(status=503), "cannot deliver"),
    ],
)
def test_a_repository_that_cannot_be_listed_is_explained(hub, store, answer, message):
    hub.serve(LISTING, answer)
    with pytest.raises(DownloadError, match=message):
        store.fetch(LISTED)
