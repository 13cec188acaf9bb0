"""A configuration as MLflow parameters, within MLflow's limits on names and lengths."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from freeflow_mlflow.address import redact

MAX_KEY = 250
MAX_PARAMETER = 6000
MAX_TAG = 5000
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_\-. /]")


def safe_name(name: str) -> str:
    """``name`` as MLflow accepts it for metrics, parameters and images alike.

    Letters, digits and ``_ - . / space``, no path that climbs, at most 250 characters.
    """
    clean = posixpath.normpath(_FORBIDDEN.sub("_", name)).lstrip("./")
    return clean[:MAX_KEY] or "unnamed"


def parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted names to text, e.g. ``training.batch_size: "64"``.

    Scalars are written as in JSON except that strings carry no quotes; lists of scalars are one value, lists of
    mappings are numbered from 0. Credentials in addresses are masked. Values over MLflow's limit are cut, with a note.
    """
    return {safe_name(name): shorten(redact(value), MAX_PARAMETER) for name, value in _flatten(config, "")}


def shorten(text: str, limit: int) -> str:
    """``text`` cut to ``limit`` characters, the last of which say so."""
    if len(text) <= limit:
        return text
    note = f" ... [cut: {len(text)} characters; config.yaml has them all]"
    return text[: limit - len(note)] + note


def _flatten(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    elif _is_list(value) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{path}.{index}")
    elif path:
        yield path, value if isinstance(value, str) else json.dumps(value, default=str)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
