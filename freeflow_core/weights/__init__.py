"""Published weights: fetched into a cache, checked, and found there by name. Nothing here imports torch."""

from freeflow_core.weights.address import describe_origin
from freeflow_core.weights.cache import CACHE_VARIABLE, cache_folder, cache_usage
from freeflow_core.weights.first_use import weights_by_name
from freeflow_core.weights.offline import OFFLINE_VARIABLE, offline_variable
from freeflow_core.weights.options import TransferOptions
from freeflow_core.weights.progress import LoggedProgress, OnProgress
from freeflow_core.weights.store import WeightStatus, WeightStore
from freeflow_core.weights.text import data_size

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
    "offline_variable",
    "weights_by_name",
]
