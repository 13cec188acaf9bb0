"""The command line over a plugin of its own, with a stand-in for the api."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import FakeApi
from freeflow_cli.main import build_app
from typer.testing import CliRunner, Result

import freeflow_core
from freeflow_core.plugin import Manager

INSTALLED = Path(__file__).parent / "installed"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output that does not depend on the terminal or on variables of the machine."""
    for name in ("FREEFLOW_DEBUG", "FREEFLOW_DISABLED_PLUGINS", "RANK", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "dumb")


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    monkeypatch.syspath_prepend(str(INSTALLED))
    manager = Manager()
    manager.register(importlib.import_module("cli_example.plugin"), "example", "freeflow-example", "1.2")
    return manager


@pytest.fixture
def freeflow(manager: Manager) -> Callable[..., Result]:
    """``freeflow("plugins", "list")`` runs the command line in this process."""

    app = build_app(manager)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    return run


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeApi:
    """Replaces the api, so that these tests need neither torch nor training."""
    fake = FakeApi(tmp_path / "runs" / "digits")
    monkeypatch.setitem(sys.modules, "freeflow_core.api", fake)
    monkeypatch.setattr(freeflow_core, "api", fake, raising=False)
    return fake


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "given.yaml"
        path.write_text(text, "utf-8")
        return path

    return write
