"""What a network is conditioned on, numbered: condition i is class i, so that any student and evaluator can follow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from freeflow_core.errors import ConfigError
from freeflow_core.network_file import load_tensors

NEGATIVE = "negative_"


class Conditions(nn.Module):
    """No condition, (N,) labels, or the rows of a table of embeddings.

    Args:
        num_classes: conditions to draw from; None: the network is unconditional.
        null_label: the label of no condition; None: there is none, and no guidance.
        table: tensors (K, ...) by argument name, with a last row K where ``null_label`` is K; empty: labels as such.
    """

    def __init__(
        self, num_classes: int | None = None, null_label: int | None = None, table: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.null_label = null_label
        self.names = tuple(table or {})
        for name, rows in (table or {}).items():
            self.register_buffer(f"table_{name}", rows, persistent=False)

    def null(self, labels: Tensor) -> Tensor:
        """The unconditional counterpart of ``labels`` (N,). Raises ``ConfigError`` when there is none."""
        if self.null_label is None:
            remedy = (
                f"add tensors {NEGATIVE}NAME (1, ...) to the file of embeddings"
                if self.names
                else "name the unconditional label with teacher.null_label, if the network was trained with one"
            )
            raise ConfigError(
                f"This teacher has no unconditional counterpart of its conditions, so it cannot be guided: {remedy}, "
                "or use a guidance weight of 1."
            )
        return torch.full_like(labels, self.null_label)

    def rows(self, labels: Tensor, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """The embeddings of ``labels`` (N,) by name, floating ones as ``dtype``."""
        found: dict[str, Tensor] = {}
        for name in self.names:
            table: Tensor = self.get_buffer(f"table_{name}")
            rows = table[labels.to(table.device, non_blocking=True)].to(device)
            found[name] = rows.to(dtype) if rows.is_floating_point() else rows
        return found


def read_embeddings(path: Path, expected: tuple[str, ...] = ()) -> Conditions:
    """A table of conditions from a file.

    Args:
        path: ``.safetensors``, or ``.npz`` without pickled objects.
        expected: names that must be there, and no others; empty: any.

    Raises:
        ConfigError: not such a file, or tensors that do not belong together.
        CheckpointError: a damaged ``.safetensors`` file.
    """
    tensors = _read(path)
    positive = {name: rows for name, rows in tensors.items() if not name.startswith(NEGATIVE)}
    negative = {name.removeprefix(NEGATIVE): rows for name, rows in tensors.items() if name.startswith(NEGATIVE)}
    if expected and set(positive) != set(expected):
        raise ConfigError(
            f"{path} holds the tensors {', '.join(sorted(tensors)) or '(none)'}; expected {', '.join(expected)}, and "
            f"for guidance the same with {NEGATIVE} before their names."
        )
    lengths = {len(rows) for rows in positive.values() if rows.ndim}
    if len(lengths) != 1 or 0 in lengths or any(rows.ndim < 1 for rows in positive.values()):
        shapes = ", ".join(f"{name} {tuple(rows.shape)}" for name, rows in sorted(positive.items()))
        raise ConfigError(
            f"{path} must hold tensors with one row a condition, equally many in each; got {shapes or 'none'}."
        )
    num = lengths.pop()
    if not negative:
        return Conditions(num, None, positive)
    expected_shapes = {name: (1, *rows.shape[1:]) for name, rows in positive.items()}
    found = {name: tuple(rows.shape) for name, rows in negative.items()}
    wrong = {name for name, _ in expected_shapes.items() ^ found.items()}
    if wrong:
        raise ConfigError(
            f"The null condition in {path} does not fit: for each tensor NAME (K, ...) expected {NEGATIVE}NAME "
            f"(1, ...) of the same further dimensions; wrong or missing: {', '.join(sorted(wrong))}."
        )
    table = {name: torch.cat([rows, negative[name].to(rows.dtype)]) for name, rows in positive.items()}
    return Conditions(num, num, table)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"The embeddings {path} cannot be read: {error}. Expected an .npz of plain arrays."
            ) from error
    if path.suffix != ".safetensors":
        raise ConfigError(f"The embeddings {path} are of an unknown kind; expected a .safetensors or .npz file.")
    return load_tensors(path)[0]
