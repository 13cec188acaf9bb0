"""Published weights: fetched into a cache, checked, and found there by name. Nothing here imports torch."""

from freeflow_core.weights.cache import CACHE_VARIABLE as CACHE_VARIABLE
from freeflow_core.weights.cache import OFFLINE_VARIABLE as OFFLINE_VARIABLE
from freeflow_core.weights.cache import OnProgress as OnProgress
from freeflow_core.weights.cache import cache_folder as cache_folder
from freeflow_core.weights.cache import cache_usage as cache_usage
from freeflow_core.weights.cache import data_size as data_size
from freeflow_core.weights.cache import offline as offline
from freeflow_core.weights.cache import offline_variable as offline_variable
from freeflow_core.weights.download import LoggedProgress as LoggedProgress
from freeflow_core.weights.download import TransferOptions as TransferOptions
from freeflow_core.weights.hub import describe_origin as describe_origin
from freeflow_core.weights.store import WeightStatus as WeightStatus
from freeflow_core.weights.store import WeightStore as WeightStore
from freeflow_core.weights.store import weights_by_name as weights_by_name
