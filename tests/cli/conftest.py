"""The command line over a plugin of its own, and a stand-in for the api that records how it was called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from freeflow_cli.main import build_app
from typer.testing import CliRunner, Result

import freeflow_core
from freeflow_core.plugin import Manager

SITE = Path(__file__).parent / "site"
SCORES = {
    "teacher": {"evaluations": 200.0, "ms_per_image": 12.5, "fid": 10.25},
    "student": {"evaluations": 1.0, "ms_per_image": 0.0625, "fid": 12.5, "accuracy": 0.98765},
}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output that does not depend on the terminal or on variables of the machine."""
    for name in ("FREEFLOW_DEBUG", "FREEFLOW_DISABLED_PLUGINS", "RANK", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "dumb")


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    monkeypatch.syspath_prepend(str(SITE))
    manager = Manager()
    manager.register(importlib.import_module("cli_example.plugin"), "example", "freeflow-example", "1.2")
    return manager


@pytest.fixture
def freeflow(manager: Manager) -> Callable[..., Result]:
    """``freeflow("plugins", "list")`` runs the command line in this process."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(build_app(manager), list(arguments))

    return run


@dataclass
class FakeApi:
    """Stands for ``freeflow_core.api``; ``calls`` holds (function, arguments)."""

    folder: Path
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    status: str = "finished"
    scores: dict[str, dict[str, float]] = field(default_factory=lambda: dict(SCORES))
    failure: BaseException | None = None
    checks: list[Any] = field(default_factory=list)

    def distill(self, config: Any, **arguments: Any) -> Any:
        return self._run("distill", config, arguments)

    def pretrain(self, config: Any, **arguments: Any) -> Any:
        return self._run("pretrain", config, arguments)

    def evaluate(self, config: Any, **arguments: Any) -> Any:
        return self._run("evaluate", config, arguments)

    def plan(self, config: Any, **arguments: Any) -> Any:
        self.calls.append(("plan", {"config": config, **arguments}))
        return SimpleNamespace(rows=[("length", "6,400 images"), ("memory", "[2 GiB]")], warnings=["no GPU was found"])

    def sample(self, **arguments: Any) -> Any:
        self.calls.append(("sample", arguments))
        return SimpleNamespace(
            folder=arguments["output"],
            files=[arguments["output"] / "grid.png"],
            evaluations=2.0,
            seconds_per_image=0.0125,
        )

    def diagnose(self, manager: Manager) -> list[Any]:
        return self.checks

    def _run(self, command: str, config: Any, arguments: dict[str, Any]) -> Any:
        self.calls.append((command, {"config": config, **arguments}))
        if self.failure is not None:
            raise self.failure
        hook = arguments["manager"].hook
        run = SimpleNamespace(name=config.name, command=command, folder=self.folder, resumed=False)
        hook.freeflow_run_started(run=run)
        hook.freeflow_run_finished(run=run, status=self.status)
        return SimpleNamespace(
            folder=self.folder,
            status=self.status,
            scores=self.scores,
            files={"student": self.folder / "student.safetensors"},
            load_report="12 tensors taken",
            duration_seconds=75.0,
            peak_memory_bytes=3 * 2**30,
        )


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeApi:
    """Replaces the api, so that these tests need neither torch nor training."""
    fake = FakeApi(tmp_path / "runs" / "digits")
    module = ModuleType("freeflow_core.api")
    for name in ("distill", "pretrain", "evaluate", "plan", "sample", "diagnose"):
        setattr(module, name, getattr(fake, name))
    monkeypatch.setitem(sys.modules, "freeflow_core.api", module)
    monkeypatch.setattr(freeflow_core, "api", module, raising=False)
    return fake


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "given.yaml"
        path.write_text(text, "utf-8")
        return path

    return write
