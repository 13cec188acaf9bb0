"""From templates to a folder: complete, or not there at all."""

from __future__ import annotations

import importlib.resources
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from freeflow_cli.scaffold.kinds import TEMPLATES
from freeflow_cli.scaffold.names import Names
from freeflow_core import __version__
from freeflow_core.errors import ConfigError
from freeflow_core.plugin import API_VERSION

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
        "commands": "\n".join(run_commands(names.name, "example.yaml", kind)),
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


def run_commands(name: str, config: str, kind: str) -> list[str]:
    """Commands that use the component, once it is installed."""
    template = TEMPLATES[kind]
    return [f"freeflow {template.verb} --config {config}", *(text.format(name=name) for text in template.commands)]


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
