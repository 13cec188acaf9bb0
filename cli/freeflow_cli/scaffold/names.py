"""The names of a new plugin, checked before anything is written."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import keyword
import re
import sys
from dataclasses import dataclass

from freeflow_core.errors import ConfigError
from freeflow_core.plugin import Registry

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
