"""Published weights: fetched into a cache, checked, and found there by name. Nothing here imports torch."""

from freeflow_core.weights.cache import (
    CACHE_VARIABLE,
    OFFLINE_VARIABLE,
    OnProgress,
    cache_folder,
    cache_usage,
    data_size,
    offline,
    offline_variable,
)
from freeflow_core.weights.download import LoggedProgress, TransferOptions
from freeflow_core.weights.hub import describe_origin
from freeflow_core.weights.store import WeightStatus, WeightStore, weights_by_name

__all__ = [
    "CACHE_VARIABLE",
    "OFFLINE_VARIABLE",
    "LoggedProgress",
    "OnProgress",
    "TransferOptions",
    "WeightStatus",
    "WeightStore",
    "cache_folder",
    "cache_usage",
    "data_size",
    "describe_origin",
    "offline",
    "offline_variable",
    "weights_by_name",
]
