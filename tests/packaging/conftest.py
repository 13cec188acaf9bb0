"""What the tests of the site and of packages share."""

import importlib
import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="session")
def site_module():
    """Loads a module of the site, ``docs/NAME.py``, which is no package's."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"site{name}", DOCS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Leaves what pip would write of a project, a distribution with its entry points; its ``[project]``."""

    def write(pyproject):
        project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
        info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
        points = "".join(f"{name} = {target}\n" for name, target in project["entry-points"]["freeflow"].items())
        (info / "entry_points.txt").write_text(f"[freeflow]\n{points}")
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        return project

    return write
