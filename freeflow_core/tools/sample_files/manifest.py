"""What the samples of a folder are: the settings that decide them, and whether they are all there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from freeflow_core import __version__
from freeflow_core.errors import ConfigError
from freeflow_core.files import write_text
from freeflow_core.types import NetworkState

MANIFEST_FILE = "samples.json"


@dataclass(frozen=True)
class Manifest:
    """``settings`` decide the samples; ``block_size`` is how they are cut.

    ``evaluations`` and ``seconds_per_image`` are known once the samples are ``complete``.
    """

    settings: Mapping[str, Any]
    block_size: int
    complete: bool = False
    evaluations: float | None = None
    seconds_per_image: float | None = None

    def write(self, folder: Path) -> None:
        """Write ``samples.json``. Raises ``OSError`` when the disk is full."""
        write_text(folder / MANIFEST_FILE, json.dumps({**asdict(self), "freeflow_version": __version__}, indent=1))


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, or None. Raises ``ConfigError`` when the file is something else."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text("utf-8"))
        stored.pop("freeflow_version")
        return Manifest(**stored)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} was not written by `freeflow sample` ({error!r}), so these samples cannot be continued. "
            "Choose another --output."
        ) from error


def network_digest(network: nn.Module, state: NetworkState | None = None) -> str:
    """Hex digest of all weights and buffers, and of the configuration in ``state``, which says how they are used.

    Equal for equal networks, wherever their file lies.
    """
    digest = hashlib.blake2b(digest_size=16)
    if state is not None:
        digest.update(json.dumps([state.family, dict(state.config)], sort_keys=True, default=str).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
