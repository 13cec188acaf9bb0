"""``freeflow fetch``: listing, fetching, verifying, and what it says when something is wrong."""

import json

import pytest
from freeflow_cli.main import build_app
from plugin_helpers import plugin
from typer.testing import CliRunner
from weights_server import Answer, content, sha256

from freeflow_core.plugin import Manager, WeightFile
from freeflow_core.weights import WeightStore

BODY = content()
pytestmark = pytest.mark.usefixtures("weights_cache")


@pytest.fixture
def server(server):
    server.serve("/one.pt", Answer(BODY))
    server.serve("/two.pt", Answer(content(2**20)))
    return server


@pytest.fixture
def declared(server):
    weights = [
        WeightFile("one", "The [first].", "one.pt", url=f"{server.address}/one.pt", size=5000, sha256=sha256(BODY)),
        WeightFile("two", "The second.", "two.pt", url=f"{server.address}/two.pt"),
        WeightFile("hub", "On the hub.", "last.pt", repository="somebody/model", size=2**31),
        WeightFile("shared", "On a share.", "last.pt", sha256=sha256(BODY), source="https://example.org/x"),
    ]
    return {weight.name: weight for weight in weights}


@pytest.fixture
def freeflow(declared):
    manager = Manager()
    manager.register(plugin(weights=lambda: list(declared.values())), "publisher")
    return lambda *arguments: CliRunner().invoke(build_app(manager), ["fetch", *arguments])


def test_cli_fetch_lists_by_default(freeflow, declared, weights_cache, server):
    result = freeflow()
    assert (result.exit_code, result.stderr, result.stdout) == (0, "", freeflow("--list").stdout)
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["one", "The", "[first].", "4.9", "KiB", "127.0.0.1", "no"] in rows
    assert ["two", "The", "second.", "-", "127.0.0.1", "no"] in rows
    assert ["hub", "On", "the", "hub.", "2.00", "GiB", "hub", "somebody/model", "no"] in rows
    assert ["shared", "On", "a", "share.", "-", "by", "hand", "no"] in rows
    assert ["one", str(WeightStore().path(declared["one"]).relative_to(weights_cache))] in rows
    assert server.requests == []
    assert not weights_cache.exists()


def test_cli_fetch_prints_the_path_alone(freeflow, declared, server):
    path = WeightStore().path(declared["one"])
    first = freeflow("one")
    assert (first.exit_code, first.stdout) == (0, f"{path}\n")
    assert first.stderr == "The weights 'one' are in the cache: 4.9 KiB, SHA-256 as published.\n"
    assert path.read_bytes() == BODY
    again = freeflow("one")
    assert (again.exit_code, again.stdout, again.stderr) == (0, f"{path}\n", "The weights 'one' are in the cache.\n")
    assert len(server.requests) == 1
    assert freeflow("one", "--force").exit_code == 0
    assert len(server.requests) == 2


def test_cli_fetch_several_and_the_list_after(freeflow, declared, server):
    result = freeflow("two", "one", "two")
    assert result.stdout.splitlines() == [str(WeightStore().path(declared[name])) for name in ("two", "one")]
    assert f"SHA-256 {sha256(content(2**20))} (the plugin knows none to compare with)" in result.stderr
    assert len(server.requests) == 2
    rows = {line.split()[0]: line.split() for line in freeflow("--list").stdout.splitlines()[3:7]}
    assert {name: row[-1] for name, row in rows.items()} == {"hub": "no", "one": "yes", "shared": "no", "two": "yes"}
    assert rows["two"][-4:-2] == ["1.0", "MiB"]
    shown = json.loads(freeflow("--list", "one", "--json").stdout)
    assert [entry["name"] for entry in shown] == ["one"]
    assert shown[0]["path"] == str(WeightStore().path(declared["one"]))
    assert (shown[0]["cached"], shown[0]["size"], shown[0]["sha256"]) == (True, 5000, sha256(BODY))


def test_cli_fetch_from_a_local_file(freeflow, declared, tmp_path):
    copy = tmp_path / "mine.pt"
    copy.write_bytes(b"something else")
    refused = freeflow("shared", "--from", str(copy))
    assert refused.exit_code == 1
    assert "expected SHA-256" in refused.stderr
    copy.write_bytes(BODY)
    assert freeflow("shared").exit_code == 1
    done = freeflow("shared", "--from", str(copy))
    assert (done.exit_code, done.stdout) == (0, f"{WeightStore().path(declared['shared'])}\n")
    assert freeflow("shared").exit_code == 0


def test_cli_fetch_verifies_every_file(freeflow, declared):
    assert freeflow("--verify").stderr == "The cache holds no weights.\n"
    assert freeflow("one", "--verify").exit_code == 1
    freeflow("one", "two")
    good = freeflow("--verify")
    assert good.exit_code == 0
    assert good.stdout.splitlines() == [
        f"one: as published ({sha256(BODY)})",
        f"two: as it came in ({sha256(content(2**20))})",
    ]
    WeightStore().path(declared["one"]).write_bytes(BODY[::-1])
    bad = freeflow("--verify")
    assert bad.exit_code == 1
    assert "one.pt in the cache is not the file that was published" in bad.stderr
    assert bad.stdout.startswith("two: ")


def test_cli_fetch_tells_misspelt_names_before_any_work(freeflow, server):
    result = freeflow("one", "sharde")
    assert result.exit_code == 2
    assert "Unknown weight file 'sharde'. Did you mean 'shared'?" in result.stderr
    assert "`freeflow fetch --list` shows all of them." in result.stderr
    assert server.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one", "two", "--from", "x"], "expected one NAME, got 2"),
        (["--from", "x"], "expected one NAME, got 0"),
        (["--force"], "--force needs the NAME"),
        (["one", "--force", "--verify"], "--force and --verify exclude each other"),
        (["one", "--json"], "--json belongs to the list"),
    ],
)
def test_cli_fetch_refuses_options_that_make_no_sense(freeflow, server, arguments, message):
    result = freeflow(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert server.requests == []
