"""Which file of a hub repository it is, where only a pattern of its name is known."""

from __future__ import annotations

import re
from collections.abc import Mapping

import requests

from freeflow_core import __version__
from freeflow_core.errors import DownloadError
from freeflow_core.plugin import WeightFile
from freeflow_core.weights.failures import PassingFailure, network_failure, refused_status
from freeflow_core.weights.options import TransferOptions
from freeflow_core.weights.text import by_hand

_SUFFIXES = (".safetensors", ".pt", ".pth")
_SHOWN = 12


def find_in_repository(weight: WeightFile, endpoint: str, headers: Mapping[str, str], options: TransferOptions) -> str:
    """The path that ``weight.pattern`` finds among the weight files of ``weight.repository``.

    Args:
        endpoint: the hub's address, without a slash at the end.
        headers: may hold the user's token.

    Raises:
        DownloadError: the repository cannot be listed, or not just one of its files is meant.
    """
    assert weight.pattern is not None
    url = f"{endpoint}/api/models/{weight.repository}/revision/{weight.revision}"
    try:
        answer = requests.get(
            url,
            headers={"User-Agent": f"freeflow/{__version__}", **headers},
            timeout=(options.connect_timeout, options.read_timeout),
        )
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        failure = network_failure(weight, url, error)
        raise (failure.error if isinstance(failure, PassingFailure) else failure) from error
    if answer.status_code != requests.codes.ok:
        raise refused_status(weight, url, answer)
    try:
        paths = sorted(str(entry["rfilename"]) for entry in answer.json()["siblings"])
    except (requests.JSONDecodeError, KeyError, TypeError) as error:
        raise DownloadError(
            f"{url} answered with something other than a list of files, so the weights {weight.name!r} cannot be "
            f"found there. Check the proxy, or {by_hand(weight)}."
        ) from error
    weights = [path for path in paths if path.endswith(_SUFFIXES)]
    found = [path for path in weights if re.search(weight.pattern, path, re.IGNORECASE)]
    if len(found) == 1:
        return found[0]
    seen = ", ".join(weights[:_SHOWN]) + (f" and {len(weights) - _SHOWN} more" if len(weights) > _SHOWN else "")
    raise DownloadError(
        f"The publisher's name for the weights {weight.name!r} is not known here, and {len(found) or 'none'} of the "
        f"weight files of {weight.repository} look like it, where one was expected. There are: {seen or 'none'}. "
        f"Choose by their page and {by_hand(weight)}."
    )
