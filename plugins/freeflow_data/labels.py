"""Classes of the images in a folder: from the sub-folders' names, or from a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freeflow_core.errors import ConfigError

_EXPECTED = (
    'Expected a .csv with the columns file,label, or a .json of {"file": label} or {"labels": [["file", label], ...]}, '
    "files relative to the image folder."
)


@dataclass(frozen=True)
class Labels:
    """``of`` maps a file to its class; a file that is not in it has none. ``num_classes`` as the labels name them."""

    of: Mapping[str, int]
    num_classes: int


def labels_from_folders(files: Iterable[str]) -> Labels:
    """The first folder of each path names its class; classes are numbered by name. Files outside have no label."""
    inside = {name: name.split("/", 1)[0] for name in files if "/" in name}
    classes = {name: index for index, name in enumerate(sorted(set(inside.values())))}
    return Labels({file: classes[folder] for file, folder in inside.items()}, len(classes))


def labels_from_file(path: Path) -> Labels:
    """Numbers are classes themselves, other labels are numbered by name.

    Raises:
        ConfigError: the file cannot be read, or names a file twice with two labels.
    """
    if path.suffix.lower() not in (".csv", ".json"):
        raise ConfigError(f"source.labels is {str(path)!r}. Expected auto, folders, none, or a .csv or .json file.")
    try:
        pairs = _csv_pairs(path) if path.suffix.lower() == ".csv" else _json_pairs(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The labels {path} cannot be read: {error}.") from None
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"The labels {path} make no sense: {error}. {_EXPECTED}") from None
    given: dict[str, str | int] = {}
    for file, label in pairs:
        if given.setdefault(file.removeprefix("./"), label) != label:
            raise ConfigError(f"The labels {path} give {file!r} twice, as {given[file]!r} and as {label!r}. Keep one.")
    if not given:
        raise ConfigError(f"The labels {path} are empty. {_EXPECTED}")
    numbers = {label: number for label in set(given.values()) if (number := _number(label)) is not None}
    if len(numbers) < len(set(given.values())):  # names, some of which may look like numbers
        numbers = {name: index for index, name in enumerate(sorted(set(given.values()), key=str))}
    classes = {file: numbers[label] for file, label in given.items()}
    return Labels(classes, max(classes.values()) + 1)


def _csv_pairs(path: Path) -> list[tuple[str, str | int]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file, strict=True) if row]
    if bad := next((number for number, row in enumerate(rows, 1) if len(row) < 2), None):
        raise ValueError(f"row {bad} has one column")
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if "label" in header:
        names = [name for name in ("file", "filename", "file_name", "path", "image") if name in header]
        if not names:
            raise ValueError("its header names no column 'file'")
        file_column, label_column = header.index(names[0]), header.index("label")
        if bad := next((n for n, row in enumerate(rows, 1) if len(row) <= max(file_column, label_column)), None):
            raise ValueError(f"row {bad} has too few columns")
        return [(row[file_column].strip(), row[label_column].strip()) for row in rows[1:]]
    return [(row[0].strip(), row[1].strip()) for row in rows]


def _json_pairs(path: Path) -> list[tuple[str, str | int]]:
    values: Any = json.loads(path.read_text("utf-8"))
    if isinstance(values, dict) and isinstance(values.get("labels"), list):
        values = values["labels"]
    pairs = list(values.items()) if isinstance(values, dict) else values
    if not isinstance(pairs, list):
        raise ValueError("it holds neither a mapping nor a list")
    for pair in pairs:
        whole = isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
        if not whole or isinstance(pair[1], bool) or not isinstance(pair[1], (str, int)):
            raise ValueError(f"{json.dumps(pair)[:80]} is not a file and its label")
    return [(file, label) for file, label in pairs]


def _number(label: str | int) -> int | None:
    try:
        return int(label)
    except ValueError:
        return None
