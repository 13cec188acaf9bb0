"""What a plugin offers. Strings only, so that listing, ``--help`` and validation never import torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from freeflow_core.errors import PluginError

KINDS: tuple[str, ...] = (
    "teacher",
    "student",
    "objective",
    "sampler",
    "interpolant",
    "codec",
    "source",
    "evaluator",
    "tracker",
    "verifier",
)
"""Every kind of component; the hook for a kind is ``freeflow_<kind>s`` (``freeflow_codecs``, ...)."""


@dataclass(frozen=True)
class Component:
    """One named thing a plugin provides.

    Args:
        name: what users type, e.g. ``"freeflow"``. Lower case, words joined by ``-``.
        target: ``"package.module:Class"``; the class implements the interface of its kind and has ``from_config``.
        config: ``"package.config:Class"``; a :class:`freeflow_core.config.ComponentConfig`.
        summary: one line for ``freeflow plugins list``.
        source: paper, repository or empty.
    """

    name: str
    target: str
    config: str
    summary: str
    source: str = ""

    def load_config_class(self) -> type[Any]:
        """The configuration class. Raises :class:`PluginError` when it cannot be imported."""
        return load_object(self.config, f"configuration of {self.name!r}")

    def load_target(self) -> type[Any]:
        """The implementing class. Raises :class:`PluginError` when it cannot be imported."""
        return load_object(self.target, f"component {self.name!r}")


@dataclass(frozen=True)
class Preset:
    """A named, complete run configuration shipped by a plugin.

    Args:
        name: what users type after ``--preset``.
        resource: ``"package:relative/path.yaml"``, a file inside the plugin's package.
        command: ``"distill"`` or ``"pretrain"``.
        summary: one line; ``scores`` says what the run reaches and where that was measured.
    """

    name: str
    resource: str
    command: str
    summary: str
    scores: str = ""


@dataclass(frozen=True)
class WeightFile:
    """Published weights that components fetch by name: ``freeflow fetch NAME``, or on first use.

    Args:
        name: what users type, e.g. ``"sit-repa-xl-2-256"``.
        summary: one line for ``freeflow fetch --list``.
        url: direct link to the file, or None.
        repository: ``"owner/name"`` on the Hugging Face hub, or None; then ``filename`` is the path inside it.
        filename: name of the file in the cache; its suffix says the format.
        revision: branch, tag or commit of ``repository``.
        size: bytes, where known.
        sha256: hex digest, where known.
        licence: of the weights, as their authors state it, or empty.
        source: page that publishes them.
    """

    name: str
    summary: str
    filename: str
    url: str | None = None
    repository: str | None = None
    revision: str = "main"
    size: int | None = None
    sha256: str | None = None
    licence: str = ""
    source: str = ""


def load_object(path: str, what: str) -> Any:
    """Import ``"package.module:Name"``; ``what`` names it in the error."""
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise PluginError(f"The {what} is declared as {path!r}; expected 'package.module:Name'.")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise PluginError(
            f"The {what} needs {path!r}, which cannot be imported: {error}. "
            "Install what is missing, or run `freeflow doctor`."
        ) from error
    except AttributeError as error:
        raise PluginError(f"The {what} points to {path!r}, but {module_name} has no {attribute!r}.") from error
