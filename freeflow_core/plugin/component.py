"""What a plugin offers. Strings only, so that listing, ``--help`` and validation never import torch."""

from __future__ import annotations

import importlib
import re
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

_SHA256 = re.compile(r"[0-9a-f]{64}")


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
        command: ``"distill"``, ``"pretrain"`` or ``"compare"``; the last holds a section ``compare`` beside the
            settings of its runs, and may name the ``distill`` preset that they are laid over (``preset: NAME``).
        summary: one line; ``scores`` says what the run reaches and where that was measured.
        teacher: name of the teacher that this preset is the default for: what ``--teacher NAME`` alone runs.
    """

    name: str
    resource: str
    command: str
    summary: str
    scores: str = ""
    teacher: str = ""


@dataclass(frozen=True)
class WeightFile:
    """Published weights that components fetch by name: ``freeflow fetch NAME``, or on first use.

    Args:
        name: what users type, e.g. ``"sit-repa-xl-2-256"``.
        summary: one line for ``freeflow fetch --list``.
        filename: name of the file in the cache; its suffix says the format. With ``repository``, the path inside it.
        url: direct link to the file (http or https), or None.
        repository: ``"owner/name"`` on the Hugging Face hub, or None. Without ``url`` and ``repository`` the file has
            to be got by hand from ``source``.
        revision: branch, tag or commit of ``repository``.
        size: bytes, where known.
        sha256: hex digest in lower case, where known.
        licence: of the weights, as their authors state it, or empty.
        source: page that publishes them.

    Raises:
        PluginError: a field that no file can be fetched by.
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

    def __post_init__(self) -> None:
        parts = self.filename.split("/")
        problems = [
            ("url and repository", self.url and self.repository, "at most one of the two"),
            ("url", self.url is not None and not self.url.startswith(("https://", "http://")), "an http(s) address"),
            ("filename", "\\" in self.filename or {"", ".", ".."} & set(parts), "a relative path with / between parts"),
            ("sha256", self.sha256 is not None and not _SHA256.fullmatch(self.sha256), "64 hex digits in lower case"),
            ("size", self.size is not None and self.size < 1, "a number of bytes"),
        ]
        for field, wrong, expected in problems:
            if wrong:
                values = ", ".join(repr(getattr(self, name)) for name in field.split(" and "))
                raise PluginError(f"The weights {self.name!r} declare {field} {values}; expected {expected}.")


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
