"""``freeflow plugins new``: the beginning of a plugin, an installable package with one small component that works."""

import importlib.metadata
import importlib.resources
import importlib.util
import keyword
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
import yaml

from freeflow_cli.commands import options
from freeflow_cli.session import Session
from freeflow_core import __version__
from freeflow_core.errors import ConfigError, suggest
from freeflow_core.plugin import API_VERSION, Registry

KINDS = ("teacher", "student", "objective", "sampler", "evaluator")
"""Kinds that a package can be written for, in the order of help texts; ``templates/KIND`` holds the files of each."""

MAX_LENGTH = 40
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def check_name(name: str, kind: str, registry: Registry) -> None:
    """Raise ``ConfigError`` unless ``name`` is like ``my-flow``, and nobody's: Python's, a package's, a plugin's."""
    if not _NAME.fullmatch(name) or len(name) > MAX_LENGTH:
        separated = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name)
        proposed = re.sub(r"[^a-z0-9]+", "-", separated.lower()).strip("-")[:MAX_LENGTH].strip("-")
        example = proposed if _NAME.fullmatch(proposed) else "my-flow"
        raise ConfigError(
            f"A plugin cannot be called {name!r}. Expected lower-case letters and digits in words joined by '-', a "
            f"letter first, at most {MAX_LENGTH} characters, e.g. {example!r}."
        )
    package = name.replace("-", "_")
    takers = {
        f"there is a {kind} of this name already": name in registry.components(kind),
        f"there is a plugin {name!r} already": name in {plugin.name for plugin in registry.manager.plugins},
        f"{package!r} is a word of the Python language": keyword.iskeyword(package) or keyword.issoftkeyword(package),
        f"{package!r} is a module of Python itself": package in sys.stdlib_module_names,
        f"a package {package!r} can be imported already": importlib.util.find_spec(package) is not None,
        f"a distribution {name!r} is installed already": any(importlib.metadata.Distribution.discover(name=name)),
    }
    if taker := next((taker for taker, taken in takers.items() if taken), None):
        raise ConfigError(f"A plugin cannot be called {name!r}: {taker}. Choose another name, e.g. '{name}-{kind}'.")


_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def package_files(name: str, kind: str) -> dict[str, str]:
    """Text of each file of the package, by its path inside the folder."""
    about = yaml.safe_load(_template(f"{kind}/about.yaml"))
    package = name.replace("-", "_")
    values = {
        "name": name,
        "package": package,
        "Class": "".join(part.capitalize() for part in name.split("-")),
        "kind": kind,
        "Contract": f"{kind.capitalize()}Contract",
        "options": "{" + ", ".join(f'"{key}": {value!r}' for key, value in about["options"].items()) + "}",
        "api": str(API_VERSION[0]),
        "freeflow": __version__,
        "summary": about["summary"],
        "source": about["source"],
        "advice": about["advice"].rstrip(),
    }
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
    return {
        path: _PLACEHOLDER.sub(lambda found: values[found[1]], _template(source)) for path, source in sources.items()
    }


def write_package(folder: Path, files: Mapping[str, str]) -> None:
    """Write ``files`` beside ``folder``, then move them into it, so that no half of them is ever there.

    Raises:
        ConfigError: there is something already, or it cannot be written.
    """
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if not is_empty and (folder.exists() or folder.is_symlink()):
        raise ConfigError(f"{folder} exists already and is not an empty folder. Name another one with --output.")
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder.absolute().parent) as partial:
            for name, text in files.items():
                path = Path(partial, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, "utf-8")
            folder.mkdir(exist_ok=True)
            for path in Path(partial).iterdir():
                path.rename(folder / path.name)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}. Name another folder with --output.") from None


def _template(path: str) -> str:
    files = importlib.resources.files("freeflow_cli")
    return files.joinpath("templates", *f"{path}.template".split("/")).read_text("utf-8")


def new_plugin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the package and its component, such as my-flow.")],
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help=f"One of {', '.join(KINDS)}.")],
    output: Annotated[Path | None, options.folder("Folder to write; default: NAME.")] = None,
) -> None:
    """Write an installable package with a small component that works, to start from."""
    if kind not in KINDS:
        raise ConfigError(f"No package for the kind {kind!r}.{suggest(kind, KINDS)} Known: {', '.join(KINDS)}.")
    check_name(name, kind, Session.of(context).registry())
    folder = Path(name) if output is None else output
    files = package_files(name, kind)
    write_package(folder, files)
    typer.echo(f"Wrote the {kind} {name!r} to {folder}: {', '.join(files)}.\n\nNext:\n")
    for command in next_commands(name, kind, folder):
        typer.echo(f"  {command}")
    file = folder / name.replace("-", "_") / f"{kind}.py"
    typer.echo(f"\nThen make {file} yours; its README.md says what to change first.")


def next_commands(name: str, kind: str, folder: Path) -> list[str]:
    """Install, list, check, run: from the current folder, in this order."""
    relative = not folder.is_absolute() and not folder.as_posix().startswith(".")
    place = f"./{folder.as_posix()}" if relative else folder.as_posix()
    return [
        f"pip install -e {shlex.quote(place)}",
        f"freeflow plugins list --kind {kind}",
        f"freeflow plugins check {name}",
        f"freeflow distill --config {shlex.quote((folder / 'example.yaml').as_posix())}",
    ]
