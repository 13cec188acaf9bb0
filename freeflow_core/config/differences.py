"""What changed between two descriptions of the same work, setting by setting."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def differences(old: Mapping[str, Any], new: Mapping[str, Any], free: tuple[str, ...] = ()) -> list[str]:
    """``a.b: old -> new`` for each setting of two nested mappings of JSON values that differs, sorted.

    Settings whose dotted name begins with one of ``free`` may differ.
    """
    before, after = _flat(old), _flat(json.loads(json.dumps(new)))
    return [
        f"{key}: {_shown(before.get(key))} -> {_shown(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(free)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
