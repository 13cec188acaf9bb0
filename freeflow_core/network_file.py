"""One network in one safetensors file: tensors plus the metadata to rebuild it. Loading never executes code."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from freeflow_core.errors import CheckpointError
from freeflow_core.files import replacing
from freeflow_core.types import NetworkState

_METADATA_KEY = "freeflow"
_MOST_LISTED = 6
N = TypeVar("N", bound=nn.Module)
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def save_network(
    path: Path, state: NetworkState, metadata: Mapping[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Write ``state`` and JSON ``metadata`` to ``path``, atomically. ``dtype`` converts floating tensors.

    Raises:
        CheckpointError: the file cannot be written (a full disk, say); nothing half-written is left behind.
    """
    tensors = {
        name: (t.to(dtype) if dtype is not None and t.is_floating_point() else t) for name, t in state.tensors.items()
    }
    description = {"family": state.family, "config": dict(state.config), **metadata}
    save_tensors(path, tensors, description)


def load_network(path: Path, dtype: torch.dtype = torch.float32) -> tuple[NetworkState, dict[str, Any]]:
    """Read what :func:`save_network` wrote; floating tensors come back as ``dtype``.

    Raises:
        CheckpointError: missing, truncated, not a safetensors file, or without this project's metadata.
    """
    tensors, metadata = load_tensors(path, finite=True)
    if "family" not in metadata or "config" not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file but holds no freeflow metadata, so the network cannot be rebuilt from it. "
            "Expected a file written by `freeflow pretrain` or `freeflow distill`."
        )
    converted = {name: (t.to(dtype) if t.is_floating_point() else t) for name, t in tensors.items()}
    family, config = metadata.pop("family"), metadata.pop("config")
    return NetworkState(family, config, converted), metadata


def build_network(make: Callable[..., N], state: NetworkState, family: str, what: str) -> N:
    """``make(**config)`` of a state of ``family``, filled with its tensors, in their precision; lists become tuples.

    ``what`` names the origin in errors, e.g. ``"autoencoder vae.safetensors"``. Raises :class:`CheckpointError` for
    another family, a configuration of no use, or tensors that do not fit.
    """
    if state.family != family:
        raise CheckpointError(
            f"The {what} holds a network of the family {state.family!r}; expected {family!r}. Choose the component "
            "that wrote it, or another file."
        )
    try:
        network = make(**{key: tuple(v) if isinstance(v, list) else v for key, v in state.config.items()})
    except (TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"The {what} has a configuration of no use ({error}). It was written by another version, or damaged."
        ) from None
    check_tensors(network.state_dict(), state.tensors, what)
    for tensor in state.tensors.values():
        if tensor.is_floating_point():
            network.to(tensor.dtype)
            break
    network.load_state_dict(state.tensors)
    return network


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write named tensors and JSON metadata, atomically. Raises :class:`CheckpointError`."""
    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        with replacing(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # what the umask allows; safetensors writes files for the owner alone
            save_file(contiguous, temporary, metadata={_METADATA_KEY: json.dumps(metadata or {})})
            temporary.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}. Free some space or use another folder.") from error


def load_tensors(
    path: Path, *, shapes_only: bool = False, finite: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read named tensors, or their shapes on the meta device, and JSON metadata.

    Raises:
        CheckpointError: it cannot be read; or, where they are to be ``finite``, a tensor holds NaN or infinity.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint file {path}. Check the path; expected a .safetensors file.")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if finite:
                check_finite(path, ((name, file.get_tensor(name)) for name in names))
            if shapes_only:
                tensors = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
            else:
                tensors = {name: file.get_tensor(name) for name in names}
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a safetensors file ({error}). It is truncated, damaged or of another format; "
            "copy or download it again."
        ) from error
    return tensors, metadata


def check_finite(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise :class:`CheckpointError` when weights of ``path`` hold NaN or infinity; they are read one at a time."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{path} holds NaN or infinity in {name}: it is of a training that diverged, or damaged. Choose "
                "another file."
            )


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Raise :class:`CheckpointError` with missing, unexpected and misshapen tensors, some of each; silent when none."""
    problems = shape_differences(*({name: tuple(t.shape) for name, t in each.items()} for each in (expected, found)))
    other = [n for n, t in found.items() if n in expected and expected[n].is_floating_point() > t.is_floating_point()]
    problems += [f"not floating-point: {listed(f'{name} is {found[name].dtype}' for name in other)}"] * bool(other)
    if problems:
        raise CheckpointError(f"The {what} does not fit: {'; '.join(problems)}.")


def shape_differences(expected: Shapes, found: Shapes) -> list[str]:
    """``"missing: a, b"``, ``"unexpected: c"`` and ``"wrong shape: d is (2,), not (3,)"``, some of each."""
    differences = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "wrong shape": [
            f"{name} is {found[name]}, not {expected[name]}"
            for name in sorted(expected.keys() & found.keys())
            if found[name] != expected[name]
        ],
    }
    return [f"{kind}: {listed(names)}" for kind, names in differences.items() if names]


def listed(names: Iterable[object]) -> str:
    """The first few names, and how many there are."""
    every = [str(name) for name in names]
    more = f", ... ({len(every)} in all)" if len(every) > _MOST_LISTED else ""
    return ", ".join(every[:_MOST_LISTED]) + more or "none"
