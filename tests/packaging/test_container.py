"""The Dockerfile is the README's install, on what .dockerignore lets through. No engine builds it here."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_wheel import wheel  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]


def instructions():
    """(stage, word, arguments) of each instruction; a stage by its name, the last one as ''."""
    stage = "before"
    for line in (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ").splitlines():
        if not line or line.startswith("#"):
            continue
        word, _, arguments = line.partition(" ")
        if word == "FROM":
            stage = arguments.partition(" AS ")[2]
        yield stage, word, arguments


def install_from_a_clone():
    commands = re.findall(r"^pip install [^#\n]*", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    return next(command.strip() for command in commands if "-e ." in command and "&&" not in command)


def allowed(path):
    """Whether .dockerignore leaves the file in the context: the last pattern that matches it or a folder above it."""
    kept = True
    places = [path.as_posix(), *(parent.as_posix() for parent in path.parents)]
    for pattern in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        if not pattern or pattern.startswith("#"):
            continue
        wanted = pattern.removeprefix("!")
        plain = wanted.removeprefix("**/")
        if any(fnmatch.fnmatchcase(p if plain == wanted else Path(p).name, plain) for p in places):
            kept = pattern.startswith("!")
    return kept


def test_the_last_stage_installs_as_the_readme_says():
    last = [(word, arguments) for stage, word, arguments in instructions() if not stage]
    assert last[0] == ("FROM", "${DEVICE}")
    assert [text for word, text in last if word == "RUN" and text.startswith("pip ")] == [install_from_a_clone()]
    assert ("COPY", ". .") in last


def test_every_device_is_a_stage_and_its_base_an_argument():
    stages = {stage: arguments for stage, word, arguments in instructions() if word == "FROM" and stage}
    given = dict(text.split("=", 1) for stage, word, text in instructions() if word == "ARG" and stage == "before")
    assert stages.keys() == {"cpu", "cuda"}
    assert given["DEVICE"] in stages
    for name, text in stages.items():
        assert text.startswith(f"${{{name.upper()}_BASE}}")
        assert given[f"{name.upper()}_BASE"]


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """The folder that COPY copies."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout, to know what belongs to the repository")
    folder = tmp_path_factory.mktemp("context")
    for path in filter(allowed, map(Path, filter(None, listed.stdout.split("\0")))):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, folder / path)
    return folder


def test_the_context_makes_the_same_wheel_as_the_repository(wheel, context, tmp_path):  # noqa: F811
    assert not {"docs", "tests", ".git"} & {path.name for path in context.iterdir()}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=context, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        assert {info.filename: info.file_size for info in archive.infolist()} == wheel[1]


@pytest.mark.long
def test_the_last_stage_installs_the_command_line(context, tmp_path):
    """Its commands in folders of this machine, with this machine's Python: minutes, and all packages."""
    environment, folder = dict(os.environ), tmp_path
    for _, word, arguments in (found for found in instructions() if not found[0]):
        text = arguments.replace("/opt", str(tmp_path / "opt"))
        if word == "ENV":
            for assignment in shlex.split(text):
                name, value = assignment.split("=", 1)
                environment[name] = value.replace("$PATH", environment["PATH"])
        elif word == "WORKDIR":
            folder = Path(text) if text.startswith(str(tmp_path)) else tmp_path / text.lstrip("/")
            folder.mkdir(parents=True)
        elif word == "COPY":
            shutil.copytree(context, folder, dirs_exist_ok=True)
        elif word == "RUN":
            subprocess.run(text, shell=True, cwd=folder, env=environment, check=True)
        elif word == "ENTRYPOINT":
            (program,) = json.loads(text)
            said = subprocess.run(
                [shutil.which(program, path=environment["PATH"]), "--version"],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert said.stdout.startswith("freeflow "), said.stderr
            assert Path(shutil.which(program, path=environment["PATH"])).is_relative_to(tmp_path)
