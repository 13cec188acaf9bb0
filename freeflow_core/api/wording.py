"""Errors in Python's words: what a command line gives as options, a call gives as arguments.

Messages name options as the command line does, plugins' own included: ``--set a.b=c``, ``--teacher NAME``. Here, and
nowhere else, they become ``a={"b": "c"}`` and ``teacher="NAME"``. What stands in backticks is a command, and stays one.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

from freeflow_core.config.load import load_yaml, merge, nest, parse_assignment
from freeflow_core.errors import ConfigError, FreeflowError

P = ParamSpec("P")
R = TypeVar("R")

_FLAGS = {"diffusers", "dry-run", "flip", "force", "private", "resume"}
_RENAMED = {
    "config": "config_file",
    "from": "from_file",
    "run": "student",
    "set": "settings",
    "set-for": "settings_for",
}
_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*)(?: ('[^']*'|[^\s-]\S*?)(?=[.,:;)]*(?:\s|$)))?")
_PLAIN = re.compile(r"[A-Z][A-Z/_]*|\d[\d.,e]*|.*[^a-z-].*")
"""What after an option is its value, whatever follows: a placeholder, a number. A word may be the sentence's."""


def in_python(message: str) -> str:
    """``message`` with arguments of a call in place of options; those that stand side by side are laid together."""
    pieces = message.split("`")
    is_command = [bool(number % 2) and not piece.startswith("--") for number, piece in enumerate(pieces)]
    return "`".join(piece if kept else _told(piece) for piece, kept in zip(pieces, is_command, strict=True))


def speaks_python(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, with its errors told by :func:`in_python`; ``on_command_line`` keeps them as they were."""

    @functools.wraps(function)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except FreeflowError as error:
            if error.on_command_line is None and error.args:
                error.on_command_line = str(error)
                error.args = (in_python(error.on_command_line), *error.args[1:])
            raise

    return told


class _Option(NamedTuple):
    start: int
    end: int
    name: str
    value: str | None


def _told(text: str) -> str:
    pieces: list[str] = []
    group: list[_Option] = []
    done = 0
    for option in [*_options(text), _Option(len(text) + 1, 0, "", None)]:
        if group and text[group[-1].end : option.start] != " ":
            pieces += [text[done : group[0].start], _arguments(group)]
            done, group = group[-1].end, []
        group.append(option)
    return "".join([*pieces, text[done:]])


def _options(text: str) -> Iterator[_Option]:
    for match in _OPTION.finditer(text):
        name, value, end = match[1], match[2], match.end()
        if value is not None and not _belongs(name, value, text[end:]):
            value, end = None, match.end(1)
        yield _Option(match.start(), end, name, value and value.strip("'"))


def _belongs(name: str, value: str, rest: str) -> bool:
    """Whether ``value`` is the option's, rather than the sentence's next word."""
    if name in _FLAGS:
        return False
    return name.startswith("set") or bool(_PLAIN.fullmatch(value)) or bool(re.match(r"[^\w\s]|\s+(or|and|--)|$", rest))


def _arguments(options: list[_Option]) -> str:
    named: dict[str, Any] = {}
    others: list[str] = []
    for _, _, name, value in options:
        key = _RENAMED.get(name, name.replace("-", "_"))
        if name in _FLAGS:
            others.append(f"{key}=True")
        elif value is None:
            others.append(key)
        elif name == "set-for":
            others.append(f"{key}=[{json.dumps(value)}]")
        elif name == "objectives":
            others.append(f"{key}={_literal(value.split(','))}")
        elif name != "set":
            named = merge(named, nest([key], load_yaml(value)))
        else:
            try:
                named = merge(named, parse_assignment(value))
            except ConfigError:
                others.append(f"{key}=[{json.dumps(value)}]")
    return ", ".join([*(f"{key}={_literal(_bare(value))}" for key, value in named.items()), *others])


def _bare(value: Any) -> Any:
    """A component without options by its name alone."""
    return value["name"] if isinstance(value, Mapping) and value.keys() == {"name"} else value


def _literal(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {_literal(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, str):
        return value if re.fullmatch("[A-Z]|\\.\\.\\.", value) else json.dumps(value, ensure_ascii=False)
    return repr(value)
