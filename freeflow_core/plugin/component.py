"""What a plugin offers. Strings only, so that listing, ``--help`` and validation never import torch."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any

from freeflow_core.errors import PluginError
from freeflow_core.plugin.culprit import described, place

KINDS = "teacher", "student", "objective", "sampler", "codec", "source", "evaluator", "tracker", "verifier", "distance"
"""Every kind of component; the hook for a kind is ``freeflow_<kind>s`` (``freeflow_codecs``, ...)."""

PRESET_COMMANDS = ("distill", "pretrain", "compare")
"""Commands that presets are for."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Component:
    """One named thing a plugin provides.

    Args:
        name: what users type, e.g. ``"freeflow"``. Lower case, words joined by ``-``.
        target: ``"package.module:Class"``, in the plugin's own package ``".module:Class"``, in the plugin's own module
            ``":Class"``; the class implements the interface of its kind.
        config: its options, named likewise; a :class:`freeflow_core.config.ComponentConfig`.
        summary: one line for ``freeflow plugins list``; empty: the first paragraph of the options' docstring.
        source: paper or repository; empty: the paragraph ``Source: ...`` of that docstring, if there is one.
        licence: of the weights it ships with, or empty.

    Raises ``PluginError`` for a name that cannot be typed, or a field that is no text.
    """

    name: str
    target: str
    config: str
    summary: str = ""
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        _check_fields(self, "Component")

    def within(self, plugin: ModuleType) -> Component:
        """With its classes named in full, seen from the plugin's module."""

        def full(path: str) -> str:
            return f"{plugin.__package__ if path.startswith('.') else plugin.__name__ * path.startswith(':')}{path}"

        return replace(self, target=full(self.target), config=full(self.config))

    def about(self) -> tuple[str, str]:
        """Summary and source. Imports the configuration class where the component does not say them itself."""
        if self.summary:
            return self.summary, self.source
        try:
            text = inspect.cleandoc(self.load_config_class().__doc__ or "")
        except PluginError as error:
            return str(error), self.source
        paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
        sources = [text.removeprefix("Source: ") for text in paragraphs if text.startswith("Source: ")]
        return paragraphs[0].rstrip("."), self.source or "; ".join(sources)

    def load_config_class(self) -> type[Any]:
        """The configuration class. Raises :class:`PluginError` when it cannot be imported."""
        return _load_object(self.config, f"configuration of {self.name!r}")

    def load_target(self) -> type[Any]:
        """The implementing class. Raises :class:`PluginError` when it cannot be imported."""
        return _load_object(self.target, f"component {self.name!r}")


@dataclass(frozen=True)
class Preset:
    """A named, complete run configuration shipped by a plugin.

    Args:
        name: what users type after ``--preset``.
        resource: ``"package:relative/path.yaml"``, a file inside the plugin's package.
        command: one of :data:`PRESET_COMMANDS`; ``compare`` has a section of that name beside the settings of its runs,
            and may name the ``distill`` preset that they are laid over (``preset: NAME``).
        summary: one line; ``scores`` says what the run reaches and where that was measured.
        teacher: the one that this preset is the default for: what ``--teacher NAME`` alone runs.

    Raises ``PluginError`` for a name that cannot be typed, another command, or a field that is no text.
    """

    name: str
    resource: str
    command: str
    summary: str
    scores: str = ""
    teacher: str = ""

    def __post_init__(self) -> None:
        _check_fields(self, "Preset")
        if self.command not in PRESET_COMMANDS:
            raise PluginError(
                f"The Preset {self.name!r} is for the command {self.command!r}; expected one whose command is one of "
                f"{', '.join(PRESET_COMMANDS)}."
            )


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
        pattern: regular expression, without regard to case, for the one weight file of ``repository`` that is fetched,
            where the publisher's name for it is not known. ``filename`` then names the copy in the cache alone.
        size: bytes, where known.
        sha256: hex digest in lower case, where known.
        licence: of the weights, as their authors state it, or empty.
        source: page that publishes them.

    Raises ``PluginError`` for a field that no file can be fetched by.
    """

    name: str
    summary: str
    filename: str
    url: str | None = None
    repository: str | None = None
    revision: str = "main"
    pattern: str | None = None
    size: int | None = None
    sha256: str | None = None
    licence: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        parts = self.filename.split("/")
        problems = [
            ("url and repository", self.url and self.repository, "at most one of the two"),
            ("url", self.url is not None and not self.url.startswith(("https://", "http://")), "an http(s) address"),
            ("pattern and repository", self.pattern is not None and not self.repository, "a repository to look in"),
            ("pattern", self.pattern is not None and not _compiles(self.pattern), "a regular expression"),
            ("filename", "\\" in self.filename or {"", ".", ".."} & set(parts), "a relative path with / between parts"),
            ("sha256", self.sha256 is not None and not _SHA256.fullmatch(self.sha256), "64 hex digits in lower case"),
            ("size", self.size is not None and self.size < 1, "a number of bytes"),
        ]
        for field, wrong, expected in problems:
            if wrong:
                values = ", ".join(repr(getattr(self, name)) for name in field.split(" and "))
                raise PluginError(f"The weights {self.name!r} declare {field} {values}; expected {expected}.")


def _check_fields(item: Component | Preset, what: str) -> None:
    for field in fields(item):
        value = getattr(item, field.name)
        if not isinstance(value, str):
            raise PluginError(
                f"A {what} was declared with {field.name}={value!r}; expected text. A class is named as "
                "'package.module:Class', so that listing imports nothing."
            )
    if not _NAME.fullmatch(item.name):
        raise PluginError(
            f"A {what} was declared with name={item.name!r}; expected letters, digits, '.', '_' and '-', with "
            "a letter or digit first, e.g. 'my-flow'."
        )


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _load_object(path: str, what: str) -> Any:
    """Import ``"package.module:Name"``; ``what`` names it in the error."""
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise PluginError(f"The {what} is declared as {path!r}; expected 'package.module:Name'.")
    try:
        found = importlib.import_module(module_name)
    except Exception as error:
        where = place(error, {module_name.partition(".")[0]})
        remedy = " Install what is missing, or run `freeflow doctor`." if isinstance(error, ImportError) else ""
        raise PluginError(
            f"The {what} needs {path!r}, which cannot be imported: {described(error)}{f' ({where})' if where else ''}."
            f"{remedy}"
        ) from error
    try:
        return getattr(found, attribute)
    except AttributeError as error:
        raise PluginError(f"The {what} points to {path!r}, but {module_name} has no {attribute!r}.") from error
