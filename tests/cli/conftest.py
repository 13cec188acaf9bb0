"""The command line over a plugin of its own, with a stand-in for the api."""

import importlib
import sys
from pathlib import Path

import pytest
from cli_support import FakeApi
from freeflow_cli.main import build_app
from typer.testing import CliRunner

import freeflow_core
from freeflow_core.plugin import Manager

INSTALLED = Path(__file__).parent / "installed"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """Output that does not depend on the terminal or on variables of the machine."""
    for name in ("FREEFLOW_DEBUG", "FREEFLOW_DISABLED_PLUGINS", "RANK", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "dumb")


@pytest.fixture
def manager(monkeypatch):
    monkeypatch.syspath_prepend(str(INSTALLED))
    manager = Manager()
    manager.register(importlib.import_module("cli_example.plugin"), "example", "freeflow-example", "1.2")
    return manager


@pytest.fixture
def freeflow(manager):
    """``freeflow("plugins", "list")`` runs the command line in this process."""

    app = build_app(manager)

    def run(*arguments):
        return CliRunner().invoke(app, list(arguments))

    return run


@pytest.fixture
def api(monkeypatch, tmp_path):
    """Replaces the api, so that these tests need neither torch nor training."""
    fake = FakeApi(tmp_path / "runs" / "digits")
    monkeypatch.setitem(sys.modules, "freeflow_core.api", fake)
    monkeypatch.setattr(freeflow_core, "api", fake, raising=False)
    return fake


@pytest.fixture
def config_file(tmp_path):
    """Writes a configuration file."""

    def write(text):
        path = tmp_path / "given.yaml"
        path.write_text(text, "utf-8")
        return path

    return write
