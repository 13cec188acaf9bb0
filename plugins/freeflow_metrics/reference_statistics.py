"""Stored means and covariances of feature distributions."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.weights import cache_folder
from freeflow_metrics import cleanfid_adapter
from freeflow_metrics.config import FrechetConfig
from freeflow_metrics.download import fetch_once


@dataclass(frozen=True)
class ReferenceStatistics:
    """Mean (F,) and covariance (F, F), float64."""

    mean: Tensor
    covariance: Tensor


def reference_statistics(options: FrechetConfig, dim: int) -> ReferenceStatistics | None:
    """The statistics that ``options.reference_statistics`` names, for ``dim`` features; None when it names none.

    Raises:
        ConfigError: no such file, unreadable, without ``mu`` and ``sigma`` or of another dimension; or the download
            of clean-fid's own statistics failed.
    """
    name = options.reference_statistics
    if name is None:
        return None
    if name.endswith(".npz"):
        return read_statistics(Path(name), dim)
    if Path(name).name != name or options.features != "inception":
        raise ConfigError(
            f"reference_statistics is {name!r} with features {options.features!r}. Expected the path of an .npz file "
            "with mu and sigma, or, with features: inception, the name of clean-fid's own statistics, such as cifar10."
        )
    mode = options.inception_resize.replace("-", "_")
    file = f"{name}_{mode}_{options.reference_split}_{options.reference_resolution}.npz".lower()
    path = fetch_once(
        f"{cleanfid_adapter.STATISTICS_URL}/{file}",
        cache_folder() / "statistics",
        "Check reference_statistics, reference_split and reference_resolution against the list on clean-fid's page; "
        "without a network, copy the file from a machine that has one and set reference_statistics to its path.",
    )
    return read_statistics(path, dim)


def read_statistics(path: Path, dim: int) -> ReferenceStatistics:
    """``mu`` and ``sigma`` of an .npz file, in ADM's layout or clean-fid's. Nothing in it is executed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (np.asarray(file[key], dtype=np.float64) for key in ("mu", "sigma"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, AttributeError) as error:
        raise ConfigError(
            f"The reference statistics {path} cannot be read ({error}). Expected an .npz file with the arrays mu, "
            f"({dim},), and sigma, ({dim}, {dim})."
        ) from error
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise ConfigError(
            f"The reference statistics {path} hold mu {mean.shape} and sigma {covariance.shape}, but the features "
            f"chosen have {dim} dimensions. Use statistics made with the same features."
        )
    return ReferenceStatistics(torch.from_numpy(mean), torch.from_numpy(covariance))
