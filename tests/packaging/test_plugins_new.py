"""The plugin author's first hour, by machine: generate every kind, install, list, check, distil."""

import ast
import json
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from freeflow_cli.commands.plugins_new import KINDS, package_files, write_package

DOCS = Path(__file__).parents[2] / "docs"
TUTORIAL = DOCS / "tutorial" / "first-plugin.md"
INSTALL = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
NAMES = {kind: f"own-{kind}" for kind in KINDS}

ALL = """
name: all
teacher: {name: own-teacher, num_classes: 3}
student: {name: own-student, width: 32}
objective: {name: own-objective, num_steps: 4}
codec: states
training: {images: 640, optimizer: {learning_rate: 3.0e-3}}
samples: {per_class: 2}
evaluation:
  num_samples: 50
  reference_sampler: own-sampler
  reference_steps: 4
  jump_steps: 2
  evaluators: [own-evaluator]
trackers: []
"""

# One process for everything that needs torch: importing it costs more than any of this. Each line of arguments is a
# command line, which goes through the installed `freeflow` command's own entry point.
DRIVER = """
import json, sys
import pytest
from freeflow_cli.main import main

assert pytest.main(["-q", "--import-mode=importlib", "-p", "no:cacheprovider", *json.loads(sys.argv[1])]) == 0
for line in json.loads(sys.argv[2]):
    sys.argv = ["freeflow", *line]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (line, end.code)
"""


class Environment:
    """A fresh environment that shares this one's packages, and a folder to work in."""

    def __init__(self, folder):
        self.folder = folder
        venv.create(folder / "env", symlinks=True)
        variables = {"base": str(folder / "env"), "platbase": str(folder / "env")}
        packages = Path(sysconfig.get_path("purelib", "venv", variables))
        shared = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        # addsitedir and not a plain path: the editable installation of this repository is itself a .pth file.
        lines = [f"import site; site.addsitedir({path!r})\n" for path in sorted(shared)]
        (packages / "shared.pth").write_text("".join(lines), "utf-8")
        binaries = folder / "env" / ("Scripts" if sys.platform == "win32" else "bin")
        self._python = binaries / "python"

    def __call__(self, *arguments):
        """Run its Python; what it printed."""
        done = subprocess.run([self._python, *arguments], cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """All kinds, generated and installed in an environment of their own, offline."""
    environment = Environment(tmp_path_factory.mktemp("first-hour"))
    lines = [["plugins", "new", name, "--kind", kind] for kind, name in NAMES.items()]
    environment("-c", DRIVER, json.dumps(["--version"]), json.dumps(lines))
    environment("-m", *INSTALL, *(f"./{name}" for name in NAMES.values()))
    return environment


def test_all_kinds_are_listed_pass_their_contracts_and_distil(installed):
    listed = json.loads(installed("-m", "freeflow_cli", "plugins", "list", "--json"))
    ours = {
        (entry["kind"], entry["distribution"]) for entry in listed["components"] if entry["name"].startswith("own-")
    }
    assert ours == set(NAMES.items())
    found = {plugin["name"]: plugin for plugin in listed["plugins"]}
    for name in NAMES.values():
        assert (found[name]["version"], found[name]["api"], found[name]["problem"]) == ("0.1.0", "1", None)

    (installed.folder / "all.yaml").write_text(ALL, "utf-8")
    lines = [["distill", "--config", "all.yaml"]]
    tests = [f"{name}/tests" for name in NAMES.values()]
    installed("-c", DRIVER, json.dumps(tests), json.dumps(lines))

    run = installed.folder / "runs" / "all"
    scores = json.loads((run / "scores.json").read_text())
    assert scores["student"]["own_evaluator_mean_error"] >= 0
    assert scores["teacher"]["evaluations"] == 8  # four midpoint steps
    assert (run / "student.safetensors").is_file()


def tutorial(language):
    """Fenced blocks of the tutorial in one language: title and text."""
    found = re.findall(rf'^```{language}(?: title="([^"]+)")?\n(.*?)^```$', TUTORIAL.read_text("utf-8"), re.M | re.S)
    assert found
    return found


def change(folder):
    """Make the tutorial's changes to the package that it generates."""
    for title, text in tutorial("diff"):
        before, after = (
            "".join(f"{line[1:]}\n" for line in text.splitlines() if line[0] in kept) for kept in (" -", " +")
        )
        file = folder / title
        source = file.read_text("utf-8")
        assert source.count(before) == 1, (title, before)
        file.write_text(source.replace(before, after), "utf-8")


def test_the_tutorials_changes_fit_what_is_generated(tmp_path):
    write_package(tmp_path / "rings", package_files("rings", "teacher"))
    change(tmp_path)
    for file in (tmp_path / "rings").rglob("*.py"):
        ast.parse(file.read_text("utf-8"))
    assert 'turn: float = Field(0.0, ge=-360, le=360, description="' in (tmp_path / "rings/rings/config.py").read_text()
    listed = next(text for _, text in tutorial("text"))
    for path in (path for path in (tmp_path / "rings").rglob("*") if path.is_file() and path.name != ".gitignore"):
        assert re.search(rf"^ *{re.escape(path.name)}(  |$)", listed, re.M), path.name


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_tutorials_commands_run_as_they_stand(installed):
    lines = [shlex.split(line) for _, text in tutorial("bash") for line in text.splitlines()]
    install = lines.index(["pip", "install", "-e", "./rings"])
    changed = lines.index(["freeflow", "plugins", "show", "rings"], install + 5)
    assert all(line[0] == "freeflow" for line in lines[:install] + lines[install + 1 :])
    commands = [line[1:] for line in lines]
    installed("-c", DRIVER, json.dumps(["--version"]), json.dumps(commands[:install]))
    installed("-m", *INSTALL, "-e", "./rings")
    installed("-c", DRIVER, json.dumps(["--version"]), json.dumps(commands[install + 1 : changed]))
    change(installed.folder)
    installed("-c", DRIVER, json.dumps(["rings/tests"]), json.dumps(commands[changed:]))
    config = (installed.folder / "runs" / "turned" / "config.yaml").read_text("utf-8")
    assert "turn: 45.0" in config


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_examples_run_as_they_are_printed(installed):
    from freeflow_cli.commands.plugins_new import next_commands

    lines = []
    for kind, name in NAMES.items():
        _, _, *commands = (shlex.split(line)[1:] for line in next_commands(name, kind, Path(name)))
        lines += commands
    installed("-c", DRIVER, json.dumps(["--version"]), json.dumps(lines))
    for name in NAMES.values():
        assert (installed.folder / "runs" / name / "student.safetensors").is_file()
