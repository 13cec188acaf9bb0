"""Classes of the images in a folder: from the sub-folders' names, or from a file."""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import StrictInt, TypeAdapter, ValidationError

from freeflow_core.errors import ConfigError

_EXPECTED = (
    'Expected a .csv with the columns file,label, or a .json of {"file": label} or {"labels": [["file", label], ...]}, '
    "files relative to the image folder."
)
_FILE_COLUMNS = ("file", "filename", "file_name", "path", "image")
_JSON_PAIRS = TypeAdapter(list[tuple[str, StrictInt | str]])


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

    Raises ``ConfigError``: the file cannot be read, or names a file twice with two labels.
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".json"):
        raise ConfigError(f"source.labels is {str(path)!r}. Expected auto, folders, none, or a .csv or .json file.")
    try:
        pairs = _csv_pairs(path) if kind == ".csv" else _json_pairs(path)
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
    distinct = set(given.values())
    try:
        numbers = {label: int(label) for label in distinct}
    except ValueError:  # names, some of which may look like numbers
        numbers = {name: index for index, name in enumerate(sorted(distinct, key=str))}
    classes = {file: numbers[label] for file, label in given.items()}
    return Labels(classes, max(classes.values()) + 1)


def _csv_pairs(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file, strict=True) if row]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    file_column, label_column = 0, 1
    if "label" in header:
        file_columns = [header.index(name) for name in _FILE_COLUMNS if name in header]
        if not file_columns:
            raise ValueError("its header names no column 'file'")
        file_column, label_column = file_columns[0], header.index("label")
    columns = max(file_column, label_column) + 1
    if short := next((number for number, row in enumerate(rows, 1) if len(row) < columns), None):
        raise ValueError(f"row {short} has fewer than {columns} columns")
    pairs = [(row[file_column].strip(), row[label_column].strip()) for row in rows]
    return pairs[1:] if "label" in header else pairs


def _json_pairs(path: Path) -> list[tuple[str, str | int]]:
    values = json.loads(path.read_text("utf-8"))
    if isinstance(values, dict) and isinstance(values.get("labels"), list):
        values = values["labels"]
    try:
        return _JSON_PAIRS.validate_python(list(values.items()) if isinstance(values, dict) else values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{json.dumps(first['input'])[:80]} is not a file and its label ({first['msg']})") from None
