"""Fixtures for all tests. One thread: contended two-thread runs are many times slower."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from weights_server import FileServer

from freeflow_core.plugin import Manager, Registry


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is fetched or kept for other runs stays among the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FREEFLOW_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def manager():
    """All installed plugins."""
    return Manager.load()


@pytest.fixture(scope="session")
def registry(manager):
    return Registry(manager)


@pytest.fixture(scope="session")
def golden():
    """Outputs of other implementations, where the checkout has them beside it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip("the golden files are not beside this checkout")
    return folder


@pytest.fixture
def server():
    """A file server on loopback."""
    with FileServer() as server:
        yield server


@pytest.fixture
def weights_cache(tmp_path, monkeypatch):
    """The folder of a cache of weights that is not there yet; nothing of the user's own is seen."""
    for name in ("FREEFLOW_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("FREEFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


# A busy machine may be many times slower: how long an example takes says nothing about the code.
settings.register_profile("freeflow", deadline=None)
settings.load_profile("freeflow")
