"""Weights as plugins declare them, and as components get them."""

import logging
import re

import pytest
from weights_server import Answer, content, file_server, sha256

from freeflow_core.errors import PluginError, UnknownComponent
from freeflow_core.plugin import Manager, Registry, WeightFile, hookimpl

BODY = content()
ONE = WeightFile("sit-xl-2-256", "SiT-XL/2.", "SiT.pt", url="https://example.org/SiT.pt")


class Publishes:
    def __init__(self, *weights):
        self._weights = weights

    @hookimpl
    def freeflow_weights(self):
        return self._weights


def registry_of(*weights: object) -> Registry:
    manager = Manager()
    manager.register(Publishes(*weights), "publisher", "dist-one", "1")
    return Registry(manager)


def test_duplicate_weights_name_both_distributions():
    manager = Manager()
    manager.register(Publishes(ONE), "first", "dist-one", "1")
    manager.register(Publishes(ONE), "second", "dist-two", "1")
    (line,) = Registry(manager).warnings
    assert re.search(r"weights? (file )?'sit-xl-2-256'.*dist-one.*dist-two", line), line


def test_a_misspelt_name_gets_a_suggestion():
    with pytest.raises(UnknownComponent, match=r"Did you mean 'sit-xl-2-256'\?.*`freeflow fetch --list`"):
        registry_of(ONE).weight("sit-xl-256")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repository": "a/b"}, "url and repository"),
        ({"url": "ftp://example.org/x"}, r"http\(s\) address"),
        ({"filename": "../x.pt"}, "filename '../x.pt'"),
        ({"sha256": "ABC"}, "64 hex digits"),
        ({"size": 0}, "size 0"),
    ],
)
def test_a_declaration_that_cannot_be_fetched_breaks_its_plugin_alone(fields, message):
    class Careless:
        @hookimpl
        def freeflow_weights(self):
            values = {"name": "x", "summary": "", "filename": "x.pt", "url": "https://example.org/x"} | fields
            return [WeightFile(**values)]

    manager = Manager()
    manager.register(Careless(), "careless")
    manager.register(Publishes(ONE), "good")
    manager.register(Publishes("sit"), "no weight")
    registry = Registry(manager)
    assert dict(registry.weights()) == {"sit-xl-2-256": ONE}
    assert any("'sit'" in line for line in registry.warnings)
    (problem,) = manager.problems
    assert problem.name == "careless"
    with pytest.raises(PluginError, match=message):
        Careless().freeflow_weights()


def test_every_declared_weight_says_enough(registry):
    for name, weight in registry.weights().items():
        assert weight.summary, name
        assert weight.url or weight.repository or weight.source, f"nobody can find the weights {name}"


_PLUGIN = '''
from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import Teacher
from freeflow_core.plugin import Component, WeightFile, hookimpl


class Config(ComponentConfig):
    """No options."""


class FromFile(Teacher):
    """A velocity read from published weights."""

    def __init__(self, path):
        import torch

        super().__init__()
        self.register_buffer("slope", torch.load(path, weights_only=True)["slope"])
        self.sample_shape = (2,)

    @classmethod
    def from_config(cls, config, context):
        return cls(context.weights("published"))

    def velocity(self, x_t, t, condition):
        return self.slope * x_t


HERE = "freeflow_file_publisher"


@hookimpl
def freeflow_teachers():
    return [Component("from-file", f"{{HERE}}:FromFile", f"{{HERE}}:Config", "Reads published weights.")]


@hookimpl
def freeflow_weights():
    return [WeightFile("published", "One number.", "slope.pt", url="{url}", sha256="{sha256}")]
'''


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    """A one-file plugin whose weights lie on a loopback server: (plugin file, server)."""
    import torch

    monkeypatch.setenv("FREEFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("FREEFLOW_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    torch.save({"slope": torch.tensor(3.0)}, tmp_path / "slope.pt")
    body = (tmp_path / "slope.pt").read_bytes()
    with file_server() as server:
        url = server.serve("/slope.pt", Answer(body))
        file = tmp_path / "publisher.py"
        file.write_text(_PLUGIN.format(url=url, sha256=sha256(body)), "utf-8")
        yield file, server


def test_a_teacher_fetches_on_first_use_and_says_so(publisher, caplog):
    import torch

    from freeflow_core import api

    file, server = publisher
    manager = Manager.load([file])
    logger = logging.getLogger("freeflow")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger="freeflow"):
            for _ in range(2):
                teacher = api.load_teacher("from-file", manager=manager)
    finally:
        logger.removeHandler(caplog.handler)
    assert torch.equal(teacher.velocity(torch.ones(1, 2), torch.ones(1), None), torch.full((1, 2), 3.0))
    lines = list(dict.fromkeys(record.getMessage() for record in caplog.records))
    assert len(lines) == 1
    assert lines[0].startswith("Fetching the weights 'published' from 127.0.0.1 to ")
    (status,) = (status for status in api.list_weights(manager=manager) if status.weight.name == "published")
    assert status.cached
    assert api.fetch("published", manager=manager) == status.path
    assert len(server.requests) == 1


def test_the_doctor_knows_the_cache(publisher, monkeypatch, tmp_path):
    from freeflow_core import api

    file, _ = publisher
    manager = Manager.load([file])

    def line():
        (check,) = (check for check in api.diagnose(Manager()) if check.name == "weights cache")
        return check

    assert line().status == "ok"
    assert f"{tmp_path / 'cache'} holds 0 file(s), 0 bytes; writable, " in line().detail
    assert not (tmp_path / "cache").exists()
    api.fetch("published", manager=manager)
    assert "holds 1 file(s), " in line().detail
    monkeypatch.setenv("FREEFLOW_OFFLINE", "1")
    assert "offline by FREEFLOW_OFFLINE" in line().detail
    monkeypatch.setattr("freeflow_core.tools.doctor.tempfile.NamedTemporaryFile", _refuse)
    assert line().status == "warning"
    assert "not writable" in line().detail


def _refuse(**arguments: object) -> None:
    raise PermissionError(13, "Permission denied")
