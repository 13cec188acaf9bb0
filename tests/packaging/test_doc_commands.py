"""Every command block of the site runs here, or says in its title what it needs.

Each page's blocks run in the order in which they stand, in a folder that holds the files the page shows. In the suite they run
with the small budgets below; the long test (``just test-docs``) runs them as they are printed. Commands of ``LONG_ONLY`` are only in the long one, and a block's title
exempts it from both, unless it says that it takes minutes.
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from freeflow_cli.main import take_plugin_files
from run_helpers import freeflow, sets

from freeflow_core.plugin import Manager

DOCS = Path(__file__).parents[2] / "docs"
MINUTES = "takes minutes"
REASONS = (
    "needs a GPU",
    "needs a network",
    "needs Docker",
    "needs a cluster",
    "needs a server",
    "needs your own files",
    "needs a clone of the repository",
    "runs until stopped",
    MINUTES,
)
INSTALLING = ("pip install ", "python3 -m venv ", ". .venv/")
"""What .ci/run does on a new machine, before it runs this file."""

LONG_ONLY = {
    "torchrun": "starts processes, seconds each",
    "freeflow compare": "several runs, and a measurement of seconds for each",
    "runs/compare-": "what a comparison leaves behind",
    "--preset sit-": "large networks: seconds for a plan, a minute for a step",
    "freeflow doctor": "starts processes and compares kernels",
    "freeflow plugins check": "trains and samples",
    "freeflow teacher check": "integrates the teacher and tries other readings of it",
    "freeflow search": "screens noises and scores them",
    "freeflow export": "traces networks: seconds each",
    "python sample_": "samples what was exported",
    "python use_p": "loads what was exported",
}
RUN_ELSEWHERE = ("tutorial/first-plugin.md",)
"""Installs a package of its own: tests/packaging/test_plugins_new.py runs its commands."""

EXIT_CODES = {"freeflow teacher check --config own.yaml --trust": 1}
"""Commands that the page says will fail."""

SHORT = ("training.images=128", "evaluation.enabled=false", "trackers=[]", "runtime.threads=1")
FEW = ("evaluation.num_samples=8", "evaluation.batch_size=8", "evaluation.reference_steps=1", "evaluation.jump_steps=1")
SMALL = {
    "distill": SHORT,
    "pretrain": SHORT,
    "evaluate": (*FEW, "evaluation.evaluators=[fidelity]", "trackers=[]"),
    "sample": (),
}
"""Settings that come last on the line. What the end of a run does is tested elsewhere."""

_BLOCK = re.compile(r'^```(bash|sh|shell|console)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_FILE = re.compile(r'^```\w+ title="([^"\s/]+\.\w+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_ENVIRONMENT = re.compile(r"^((?:[A-Z_]+=\S+ )*)(.*)$", re.DOTALL)


def command_blocks(page):
    """(title, commands) of a page's shell blocks; a command may have gone over several lines."""
    return [
        (title, [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")])
        for _, title, text in _BLOCK.findall(page.read_text("utf-8"))
    ]


def name_of(page):
    return page.relative_to(DOCS).as_posix()


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if command_blocks(page)]


def test_every_title_of_a_command_block_is_one_of_the_reasons():
    for page in PAGES:
        for title, commands in command_blocks(page):
            assert title in ("", *REASONS), f"{name_of(page)}: {title!r} above {commands[0]!r} is none of {REASONS}"


def is_long(command):
    return any(part in command for part in LONG_ONLY)


def runnable(page, *, long):
    """The commands of a page that run in the suite, or in the long test."""
    blocks = [] if name_of(page) in RUN_ELSEWHERE else command_blocks(page)
    return [
        command
        for title, commands in blocks
        for command in commands
        if title in (("", MINUTES) if long else ("",)) and (long or not is_long(command))
        if not command.startswith(INSTALLING)
    ]


def scaled(arguments):
    """The command with small budgets; later settings win."""
    verb = next(argument for argument in arguments if not argument.startswith("-"))
    if verb not in SMALL or "--dry-run" in arguments:
        return arguments
    settings = list(SMALL[verb])
    if any(argument.startswith("training.stop_at_images=1") for argument in arguments):
        settings.append("training.stop_at_images=64")
    small = sets(*settings)
    if verb == "sample":
        small += ["--num", "4"] + (["--steps", "2"] if "--steps" in arguments else [])
    return [*arguments, *small]


def invoke(command, monkeypatch):
    """One command in this process, with small budgets. A failure is shown with what it printed."""
    found = _ENVIRONMENT.match(command)
    for assignment in found[1].split():
        monkeypatch.setenv(*assignment.split("=", 1))
    words = shlex.split(found[2], comments=True)
    target = words[words.index(">") + 1] if ">" in words else None
    words = words[: words.index(">")] if target else words
    if words[0] == "python":
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")
        return
    assert words[0] == "freeflow", f"cannot run {command!r} here: say in the block's title what it needs"
    arguments, files = take_plugin_files(words[1:])
    result = freeflow(*scaled(arguments), manager=Manager.load(files))
    if target:
        Path(target).write_text(result.stdout, "utf-8")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """What most pages start from: the student of a (tiny) first run."""
    folder = tmp_path_factory.mktemp("first") / "digits-freeflow"
    freeflow("distill", "--preset", "digits", "--output", folder, *sets(*SHORT))
    return folder


def prepare(page, folder, run):
    """The files that the page shows beside packages, and the runs that it takes for granted."""
    text = page.read_text("utf-8")
    for title, content in _FILE.findall(text):
        (folder / title).write_text(content, "utf-8")
    for name in ("digits-freeflow", "my-run"):
        if f"runs/{name}" in text and "freeflow distill\n" not in text.split(f"runs/{name}")[0]:
            shutil.copytree(run, folder / "runs" / name)


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page, long=False)], ids=name_of)
def test_the_commands_of_a_page_run(page, tmp_path, monkeypatch, finished_run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FREEFLOW_CACHE", str(tmp_path / "cache"))
    prepare(page, tmp_path, finished_run)
    for command in dict.fromkeys(runnable(page, long=False)):
        invoke(command, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page, long=True)], ids=name_of)
def test_the_commands_of_a_page_run_as_printed(page, tmp_path, finished_run):
    prepare(page, tmp_path, finished_run)
    os.symlink(DOCS.parent / "benchmarks", tmp_path / "benchmarks")
    os.symlink(DOCS.parent / "tests", tmp_path / "tests")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in runnable(page, long=True):
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == EXIT_CODES.get(command, 0), f"{command}\n{done.stdout}\n{done.stderr}"
