"""Weights as plugins declare them, and as components get them."""

import pytest
import torch
from plugin_helpers import plugin
from weights_server import Answer, sha256

from freeflow_core import api
from freeflow_core.errors import PluginError
from freeflow_core.interfaces import Teacher
from freeflow_core.plugin import Component, Manager, Registry, WeightFile

ONE = WeightFile("sit-xl-2-256", "SiT-XL/2.", "SiT.pt", url="https://example.org/SiT.pt")


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
    values = {"name": "x", "summary": "", "filename": "x.pt", "url": "https://example.org/x"} | fields
    manager = Manager()
    manager.register(plugin(weights=lambda: [WeightFile(**values)]), "careless")
    manager.register(plugin(weights=[ONE]), "good")
    manager.register(plugin(weights=["sit"]), "no weight")
    registry = Registry(manager)
    assert dict(registry.weights()) == {"sit-xl-2-256": ONE}
    assert any("'sit'" in line for line in registry.warnings)
    (problem,) = manager.problems
    assert problem.name == "careless"
    with pytest.raises(PluginError, match=message):
        WeightFile(**values)


def test_every_declared_weight_says_enough(registry):
    for name, weight in registry.weights().items():
        assert weight.summary, name
        assert weight.url or weight.repository or weight.source, f"nobody can find the weights {name}"


class FromFile(Teacher):
    """A velocity read from published weights."""

    def __init__(self, path):
        super().__init__()
        self.register_buffer("slope", torch.load(path, weights_only=True)["slope"])
        self.sample_shape = (2,)

    @classmethod
    def from_config(cls, config, context):
        return cls(context.weights("published"))

    def velocity(self, x_t, t, condition):
        return self.slope * x_t


@pytest.fixture
def publisher(tmp_path, weights_cache, server):
    """All plugins, and one whose weights lie on a loopback server."""
    torch.save({"slope": torch.tensor(3.0)}, tmp_path / "slope.pt")
    body = (tmp_path / "slope.pt").read_bytes()
    url = server.serve("/slope.pt", Answer(body))
    weights = [WeightFile("published", "One number.", "slope.pt", url=url, sha256=sha256(body))]
    teacher = Component("from-file", f"{__name__}:FromFile", "freeflow_data.config:PriorConfig", "Reads weights.")
    manager = Manager.load()
    manager.register(plugin(teachers=[teacher], weights=weights), "publisher")
    return manager


def test_a_teacher_fetches_on_first_use_and_says_so(publisher, server, caplog):
    with caplog.at_level("INFO", logger="freeflow"):
        for _ in range(2):
            teacher = api.load_teacher("from-file", manager=publisher)
    assert torch.equal(teacher.velocity(torch.ones(1, 2), torch.ones(1), None), torch.full((1, 2), 3.0))
    assert [record.getMessage().startswith("Fetching the weights 'published'") for record in caplog.records] == [True]
    (status,) = (status for status in api.list_weights(manager=publisher) if status.weight.name == "published")
    assert status.cached
    assert api.fetch("published", manager=publisher) == status.path
    assert len(server.requests) == 1


def test_the_doctor_knows_the_cache(publisher, weights_cache, monkeypatch):
    def line():
        (check,) = (check for check in api.diagnose(Manager()) if check.name == "weights cache")
        assert check.status == "ok"
        return check.detail

    assert f"{weights_cache} holds 0 file(s)" in line()
    assert not weights_cache.exists()
    api.fetch("published", manager=publisher)
    assert "holds 1 file(s), " in line()
    monkeypatch.setenv("FREEFLOW_OFFLINE", "1")
    assert "offline by FREEFLOW_OFFLINE" in line()
