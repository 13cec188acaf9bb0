"""Checkpoint files of any of the formats in use, as named tensors. Loading never executes what a file says."""

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from freeflow_core.errors import CheckpointError
from freeflow_core.network_file import check_finite, listed, load_tensors

Entry = Literal["ema", "model"]

_ENTRIES: tuple[str, ...] = ("ema", "model", "state_dict")
"""Where training checkpoints keep weights, in order of preference: averaged ones first."""


@final
@dataclass(frozen=True)
class Checkpoint:
    """What a file holds."""

    path: Path
    container: str  # its format in words, e.g. "training checkpoint, entry ema"
    tensors: Mapping[str, Tensor]  # without the prefixes of wrappers; they may be mapped from the file
    metadata: Mapping[str, Any] = field(default_factory=dict)  # of a safetensors file that this project wrote

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_checkpoint(path: Path, entry: Entry | None = None, *, shapes_only: bool = False) -> Checkpoint:
    """Read a safetensors file, a pickled state dict, or a pickled training checkpoint (``ema``/``model``/``opt``/...).

    The format is told by the content, never by the name. Pickles are read with ``weights_only``, so that nothing in
    them is executed; of other objects than tensors only ``argparse.Namespace`` is let in.

    ``entry`` says which weights of a training checkpoint; None: ``ema``, else ``model``. With ``shapes_only`` the
    tensors are on the meta device.

    Raises:
        CheckpointError: missing, damaged or foreign files, pickles that hold code, and entries that are not there.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}; expected a .safetensors, .pt or .pth file.")
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:9] == b"{":
        if entry is not None:
            raise _no_entry(path, entry, "is a safetensors file, which holds one set of weights")
        tensors, metadata = load_tensors(path, shapes_only=shapes_only, finite=True)
        return Checkpoint(path, "safetensors", _without_prefixes(tensors, path), metadata)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return _read_pickle(path, entry, mapped=head[:2] == b"PK", shapes_only=shapes_only)
    raise CheckpointError(
        f"{path} is neither a safetensors file nor a PyTorch checkpoint. It is damaged or of another kind; expected "
        "weights in .safetensors, .pt or .pth format. A download that failed may have left an error page in its place."
    )


def _read_pickle(path: Path, entry: Entry | None, *, mapped: bool, shapes_only: bool) -> Checkpoint:
    # Mapped, the optimizer's state, most of a training checkpoint, is never read. Mapping needs a path, and torch goes
    # by a path's suffix.
    mapped = mapped and path.suffix != ".safetensors"
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:
            where = path if mapped else file
            content = torch.load(where, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged or hostile pickle may raise anything
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not named tensors. Expected a state dict, or a training "
            "checkpoint with the entries ema, model, opt and args. Save model.state_dict() rather than the model."
        )
    if content and all(isinstance(value, Tensor) for value in content.values()):
        if entry is not None:
            raise _no_entry(path, entry, "is a state dict, which holds one set of weights")
        return Checkpoint(path, "state dict", _checked(content, path, shapes_only))
    present = [name for name in _ENTRIES if isinstance(content.get(name), Mapping) and content[name]]
    if entry is not None and entry not in present:
        raise _no_entry(path, entry, f"holds the entries {listed(content)}")
    if not present:
        raise CheckpointError(
            f"{path} holds no weights: expected a state dict, or a training checkpoint with the entry "
            f"{' or '.join(_ENTRIES)}, found the entries {listed(content)}."
        )
    name = entry or present[0]
    strays = [key for key, value in content[name].items() if not isinstance(value, Tensor)]
    if strays:
        raise CheckpointError(f"The entry {name} of {path} holds more than tensors: {listed(strays)}.")
    return Checkpoint(path, f"training checkpoint, entry {name}", _checked(content[name], path, shapes_only))


def _checked(tensors: Mapping[Any, Tensor], path: Path, shapes_only: bool) -> dict[str, Tensor]:
    """Finite tensors by their bare names; on the meta device where their shapes are enough."""
    check_finite(path, ((str(name), tensor) for name, tensor in tensors.items()))
    found = _without_prefixes(tensors, path)
    return {name: tensor.to("meta") for name, tensor in found.items()} if shapes_only else found


def _without_prefixes(tensors: Mapping[Any, Tensor], path: Path) -> dict[str, Tensor]:
    """Names as the bare network has them: ``_orig_mod.`` (compiled) goes anywhere, ``module.`` (DDP) in front."""
    names = {name: str(name).replace("_orig_mod.", "") for name in tensors}
    while names and all(name.startswith("module.") for name in names.values()):
        names = {original: name.removeprefix("module.") for original, name in names.items()}
    stripped = {names[original]: tensor for original, tensor in tensors.items()}
    if len(stripped) != len(tensors):
        raise CheckpointError(f"{path} holds the same tensor twice, with and without a wrapper's prefix.")
    return stripped


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """What to say of a pickle that did not load; torch's own advice, to switch the protection off, is left out."""
    text = " ".join(str(error).split())
    if isinstance(error, pickle.UnpicklingError):
        culprit = re.search(r"(?:GLOBAL|global) ([\w.]+)", text)
        found = culprit[1] if culprit else "what PyTorch's restricted reader refuses (or it is damaged)"
        return CheckpointError(
            f"{path} was not loaded: besides tensors it holds {found}, and loading such objects can run code. Expected "
            "tensors and, in training checkpoints, an argparse.Namespace. If you trust its origin, save the state dict "
            "alone with the program that made it."
        )
    return CheckpointError(
        f"{path} cannot be read as a PyTorch checkpoint ({type(error).__name__}: {text[:150]}). It is truncated, "
        "damaged or of another format; copy or download it again."
    )


def _no_entry(path: Path, entry: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"The weights {entry!r} were asked for, but {path} {found}. Leave the option `weights` out, or name another."
    )
