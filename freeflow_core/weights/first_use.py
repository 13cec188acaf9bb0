"""Weights by name, for the components of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from freeflow_core.plugin import Registry
from freeflow_core.weights.address import describe_origin
from freeflow_core.weights.offline import offline_variable
from freeflow_core.weights.progress import LoggedProgress
from freeflow_core.weights.store import WeightStore
from freeflow_core.weights.text import data_size

_LOG = logging.getLogger("freeflow")


def weights_by_name(registry: Registry, store: WeightStore | None = None) -> Callable[[str], Path]:
    """What a component gets as ``context.weights``: the path of published weights, fetched when they are not there yet.

    The function raises :class:`freeflow_core.errors.UnknownComponent` for a name that no plugin offers, and
    :class:`freeflow_core.errors.DownloadError` for weights that cannot be had.
    """

    def weights(name: str) -> Path:
        weight = registry.weight(name)
        used = store or WeightStore()  # the folder is looked up late: the environment may change between two runs
        found = used.find(weight)
        if found is not None:
            return found
        if offline_variable() is None and (weight.url or weight.repository):
            size = f" ({data_size(weight.size)})" if weight.size is not None else ""
            _LOG.info(
                "Fetching the weights %r%s from %s to %s.", name, size, describe_origin(weight), used.path(weight)
            )
        return used.fetch(weight, on_progress=LoggedProgress(name))

    return weights
