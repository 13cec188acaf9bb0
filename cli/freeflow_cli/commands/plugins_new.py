"""``freeflow plugins new``: the beginning of a plugin, an installable package with one small component that works."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import importlib.util
import keyword
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from freeflow_cli.session import Session
from freeflow_core import __version__
from freeflow_core.errors import ConfigError, suggest
from freeflow_core.plugin import API_VERSION, Registry


@dataclass(frozen=True)
class KindTemplate:
    """One kind.

    Args:
        summary: of the small component, for ``freeflow plugins list``.
        source: where its formula comes from.
        advice: what to change first, for the README.
        options: of the component, for its contract test.
    """

    summary: str
    source: str
    advice: str
    options: Mapping[str, object] = field(default_factory=dict)


TEMPLATES: Mapping[str, KindTemplate] = {
    "teacher": KindTemplate(
        summary="Exact velocity of Gaussians on a ring in the plane, one for each class.",
        source="Closed form: E[n - x | x_t, c]",
        advice="`velocity` is the whole teacher: put your network into `__init__`, load its weights there, and convert "
        "its convention\nto freeflow's in `velocity`: t = 0 is data, t = 1 noise, v = dx_t/dt. The contract says so "
        "when time or sign run the\nother way. `null_condition` is what guidance compares with; raise `ConfigError` "
        "there if your network has none.",
        options={"num_classes": 3},
    ),
    "student": KindTemplate(
        summary="A perceptron that predicts the average velocity of small states.",
        source="Average velocity: Geng et al. 2025, arXiv 2505.13447",
        advice="Replace the layers in `__init__` and their use in `forward`; keep everything with weights inside "
        "`forward`. When\nyour network can start from a teacher's weights, take them in `load_teacher` and report "
        "what was taken.",
        options={"width": 16, "depth": 1},
    ),
    "objective": KindTemplate(
        summary="Regression of one step on the teacher's end points.",
        source="Luhman & Luhman 2021, arXiv 2101.02388",
        advice="`losses` is the objective: one value a row, (N,), never their mean. Further networks (a critic, an "
        "average of the\nstudent) are returned by `roles` and found in `models`. Gradient passes go through "
        "`models[name].wrapped`, all\nothers through `.bare`; every random number comes from `draws`.",
        options={"num_steps": 8},
    ),
    "sampler": KindTemplate(
        summary="The midpoint method: second order, two evaluations a step.",
        source="Runge 1895",
        advice="Change the step in `sample`. Derive from `FlowMapSampler` instead of `VelocitySampler` to jump with a "
        "student. Count\nwhat a sample costs in `Samples.num_evaluations`; guided evaluations are two.",
    ),
    "evaluator": KindTemplate(
        summary="Errors of the mean and the spread against the many-step teacher.",
        source="",
        advice="For each row of the table: `reset`, `update` for every batch, `compute`. Real images to compare with "
        "are in\n`context.reference` when `prepare` is called. Set `paired = True` to compare sample by sample with "
        "`batch.reference_x`.",
    ),
}
"""Kinds that a package can be written for, in the order of help texts."""


MAX_LENGTH = 40
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Names:
    """One name in its forms: ``my-flow`` (distribution, plugin and component), ``my_flow`` (package), ``MyFlow``."""

    name: str

    @property
    def package(self) -> str:
        """The importable package."""
        return self.name.replace("-", "_")

    @property
    def class_name(self) -> str:
        """The component's class."""
        return "".join(part.capitalize() for part in self.name.split("-"))


def check_names(name: str, kind: str, registry: Registry) -> Names:
    """The forms of ``name``.

    Raises:
        ConfigError: it is not of the form ``my-flow``, or something has it: Python, an installed package, a plugin.
    """
    if not _NAME.fullmatch(name) or len(name) > MAX_LENGTH:
        raise ConfigError(
            f"A plugin cannot be called {name!r}. Expected lower-case letters and digits in words joined by '-', a "
            f"letter first, at most {MAX_LENGTH} characters{_proposal(name)}."
        )
    names = Names(name)
    if name in registry.components(kind):
        raise ConfigError(
            f"There is a {kind} {name!r} already, of plugin {registry.origin(kind, name)}. Choose another name."
        )
    for plugin in registry.manager.plugins:
        if plugin.name == name:
            raise ConfigError(f"There is a plugin {plugin} already. Choose another name.")
    if owner := _owner(names):
        raise ConfigError(f"A plugin cannot be called {name!r}: {owner}. Choose another name, e.g. '{name}-{kind}'.")
    return names


def _proposal(name: str) -> str:
    separated = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name)
    proposed = re.sub(r"[^a-z0-9]+", "-", separated.lower()).strip("-")[:MAX_LENGTH].strip("-")
    return f", e.g. {proposed!r}" if _NAME.fullmatch(proposed) else ", e.g. 'my-flow'"


def _owner(names: Names) -> str | None:
    """Who has a name that would be imported or installed under it."""
    if keyword.iskeyword(names.package) or keyword.issoftkeyword(names.package):
        return f"{names.package!r} is a word of the Python language"
    if names.package in sys.stdlib_module_names:
        return f"{names.package!r} is a module of Python itself"
    if importlib.util.find_spec(names.package) is not None:
        return f"a package {names.package!r} can be imported already"
    try:
        importlib.metadata.distribution(names.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return f"a distribution {names.name!r} is installed already"


_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
_SUFFIX = ".template"


def package_files(names: Names, kind: str) -> dict[str, str]:
    """Text of each file of the package, by its path inside the folder."""
    template = TEMPLATES[kind]
    values = {
        "name": names.name,
        "package": names.package,
        "Class": names.class_name,
        "kind": kind,
        "Contract": f"{kind.capitalize()}Contract",
        "options": _literal(template.options),
        "api": str(API_VERSION[0]),
        "freeflow": __version__,
        "summary": template.summary,
        "source": template.source,
        "advice": template.advice,
    }
    package = names.package
    sources = {
        "pyproject.toml": "common/pyproject.toml",
        "README.md": "common/README.md",
        ".gitignore": "common/gitignore",
        "example.yaml": f"{kind}/example.yaml",
        f"{package}/__init__.py": "common/init.py",
        f"{package}/plugin.py": "common/plugin.py",
        f"{package}/config.py": f"{kind}/config.py",
        f"{package}/{kind}.py": f"{kind}/component.py",
        "tests/test_contract.py": "common/test_contract.py",
    }
    return {path: _render(source, values) for path, source in sources.items()}


def check_folder(folder: Path) -> None:
    """Raise :class:`ConfigError` unless nothing would be lost by writing ``folder``."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} exists already and is not an empty folder. Name another one with --output.")


def write_package(folder: Path, files: Mapping[str, str]) -> None:
    """Write ``files`` into a folder beside ``folder``, then give it that name, so that no half of it is ever there.

    Raises:
        ConfigError: there is something already, or it cannot be written.
    """
    check_folder(folder)
    folder = folder.absolute()
    partial = folder.parent / f".{folder.name}.{os.getpid()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            for name, text in files.items():
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, "utf-8")
            if folder.is_dir():  # it may be the current folder of a shell, so it stays the same folder
                for path in partial.iterdir():
                    path.rename(folder / path.name)
            else:
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}. Name another folder with --output.") from None


def _render(source: str, values: Mapping[str, str]) -> str:
    file = importlib.resources.files("freeflow_cli").joinpath("templates", *f"{source}{_SUFFIX}".split("/"))
    return _PLACEHOLDER.sub(lambda found: values[found[1]], file.read_text("utf-8"))


def _literal(options: Mapping[str, object]) -> str:
    """As ruff would format it."""
    pairs = (f'"{name}": {value!r}' for name, value in options.items())
    return "{" + ", ".join(pairs) + "}"


def new_plugin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the package and its component, such as my-flow.")],
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help=f"One of {', '.join(TEMPLATES)}.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write; default: NAME.")
    ] = None,
) -> None:
    """Write an installable package with a small component that works, to start from."""
    if kind not in TEMPLATES:
        raise ConfigError(
            f"No package can be written for the kind {kind!r}.{suggest(kind, TEMPLATES)} Known: {', '.join(TEMPLATES)}."
        )
    names = check_names(name, kind, Session.of(context).registry())
    folder = Path(name) if output is None else output
    check_folder(folder)
    files = package_files(names, kind)
    write_package(folder, files)
    typer.echo(f"Wrote the {kind} {name!r} to {folder}: {', '.join(files)}.\n\nNext:\n")
    for command in next_commands(name, kind, folder):
        typer.echo(f"  {command}")
    typer.echo(f"\nThen make {folder / names.package / f'{kind}.py'} yours; its README.md says what to change first.")


def next_commands(name: str, kind: str, folder: Path) -> list[str]:
    """Install, list, check, run: from the current folder, in this order."""
    place = folder.as_posix()
    if not folder.is_absolute() and not place.startswith("."):
        place = f"./{place}"
    return [
        f"pip install -e {shlex.quote(place)}",
        f"freeflow plugins list --kind {kind}",
        f"freeflow plugins check {name}",
        f"freeflow distill --config {shlex.quote((folder / 'example.yaml').as_posix())}",
    ]
