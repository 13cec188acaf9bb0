"""``freeflow plugins new``: what it writes, what it refuses, and that nothing half-written is left."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from freeflow_cli.commands import plugins_new as scaffold
from freeflow_cli.commands.plugins_new import KINDS, next_commands, package_files

from freeflow_core.config import load_run_config
from freeflow_core.plugin import Manager, Registry
from freeflow_core.plugin.manager import needed_in_source, refusal


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def generated(freeflow, here, monkeypatch):
    """All kinds, each importable."""
    for kind in KINDS:
        result = freeflow("plugins", "new", f"zeta-{kind}", "--kind", kind)
        assert result.exit_code == 0, result.output
        monkeypatch.syspath_prepend(str(here / f"zeta-{kind}"))
    yield here
    for name in [name for name in sys.modules if name.split(".")[0].startswith("zeta_")]:
        del sys.modules[name]


def test_new_writes_an_installable_package(freeflow, here):
    result = freeflow("plugins", "new", "my-flow", "--kind", "teacher")
    assert result.exit_code == 0
    files = {path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()}
    modules = [f"my_flow/{name}.py" for name in ("__init__", "plugin", "config", "teacher")]
    expected = ["pyproject.toml", "README.md", ".gitignore", "example.yaml", *modules, "tests/test_contract.py"]
    assert files == {f"my-flow/{name}" for name in expected}
    project = tomllib.loads((here / "my-flow/pyproject.toml").read_text())
    assert project["project"]["name"] == "my-flow"
    assert project["project"]["entry-points"] == {"freeflow": {"my-flow": "my_flow.plugin"}}
    assert project["build-system"]["build-backend"] == "hatchling.build"
    assert "class TestMyFlow(TeacherContract):" in (here / "my-flow/tests/test_contract.py").read_text()
    for command in next_commands("my-flow", "teacher", Path("my-flow")):
        assert f"\n  {command}\n" in result.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_new_fills_every_placeholder(kind):
    for path, text in package_files("zeta-nine", kind).items():
        assert "{{" not in text.replace("{{}}", ""), path
        if path.endswith(".py"):
            ast.parse(text)
            imported = {
                line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import", "from"))
            }
            assert ("torch" in imported) == path.endswith(f"/{kind}.py"), path
    assert refusal(needed_in_source(package_files("zeta-nine", kind)["zeta_nine/plugin.py"])) is None


def test_new_packages_are_clean_and_their_examples_valid(generated):
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=generated, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
    manager = Manager.load()
    for kind in KINDS:
        manager.register(importlib.import_module(f"zeta_{kind}.plugin"), f"zeta-{kind}", f"zeta-{kind}", "0.1.0")
    registry = Registry(manager)
    assert not registry.warnings
    assert not manager.problems
    for kind in KINDS:
        component = registry.component(kind, f"zeta-{kind}")
        assert component.load_target().__name__ == f"Zeta{kind.capitalize()}"
        for option in component.load_config_class().model_fields.values():
            assert option.description
        config = load_run_config(registry, "distill", file=generated / f"zeta-{kind}" / "example.yaml")
        assert f"'zeta-{kind}'" in repr(config.model_dump(exclude={"name"})), f"the {kind}'s example does not use it"
        assert config.training.images <= 25_600


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("My_Flow", "e.g. 'my-flow'"),
        ("MyFlow", "e.g. 'my-flow'"),
        ("../up", "e.g. 'up'"),
        ("x" * 41, "at most 40 characters"),
        ("match", "a word of the Python language"),
        ("json", "a module of Python itself"),
        ("freeflow-core", "can be imported already"),
        ("freeflow-distill", "distribution 'freeflow-distill' is installed"),
        ("wise", "there is a teacher of this name"),
        ("example", "there is a plugin 'example' already"),
    ],
)
def test_new_refuses_names(freeflow, here, name, words):
    result = freeflow("plugins", "new", "--kind", "teacher", "--", name)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split()).replace("│ ", "").replace(" │", "")
    assert not list(here.iterdir())


def test_new_refuses_unknown_kinds(freeflow, here):
    result = freeflow("plugins", "new", "my-flow", "--kind", "objektive")
    assert result.exit_code == 2
    assert "Did you mean 'objective'?" in result.stderr
    assert freeflow("plugins", "new", "my-flow", "--kind", "codec").exit_code == 2
    assert freeflow("plugins", "new", "my-flow").exit_code == 2
    assert not list(here.iterdir())


def test_new_never_overwrites(freeflow, here):
    (here / "my-flow").mkdir()
    assert freeflow("plugins", "new", "my-flow", "--kind", "sampler").exit_code == 0  # empty: nothing is lost
    (here / "my-flow/my_flow/sampler.py").write_text("mine")
    result = freeflow("plugins", "new", "my-flow", "--kind", "sampler")
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert (here / "my-flow/my_flow/sampler.py").read_text() == "mine"
    (here / "file").write_text("mine")
    assert freeflow("plugins", "new", "my-flow", "--kind", "sampler", "--output", "file").exit_code == 2
    assert sorted(path.name for path in here.iterdir()) == ["file", "my-flow"]


def test_new_leaves_nothing_half_written(freeflow, here, monkeypatch):
    written = []
    write_text = Path.write_text

    def full_disk(path, text, encoding):
        written.append(path)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        return write_text(path, text, encoding)

    monkeypatch.setattr(scaffold.Path, "write_text", full_disk)
    result = freeflow("plugins", "new", "my-flow", "--kind", "sampler", "--output", "deep/my-flow")
    assert result.exit_code == 2
    assert "No space left" in result.stderr
    assert len(written) == 4
    assert list((here / "deep").iterdir()) == []


def test_new_writes_where_it_is_told(freeflow, here, monkeypatch):
    result = freeflow("plugins", "new", "my-flow", "--kind", "sampler", "--output", "some where/else")
    assert (here / "some where/else/my_flow/sampler.py").is_file()
    assert "  pip install -e './some where/else'\n" in result.stdout
    assert "  freeflow distill --config 'some where/else/example.yaml'\n" in result.stdout
    (here / "empty").mkdir()
    monkeypatch.chdir(here / "empty")
    result = freeflow("plugins", "new", "my-flow", "--kind", "sampler", "--output", ".")
    assert (here / "empty/my_flow/sampler.py").is_file()
    assert "  pip install -e .\n" in result.stdout
    assert "  freeflow distill --config example.yaml\n" in result.stdout
