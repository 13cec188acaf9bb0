"""From a weight to the address it is fetched from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from freeflow_core.errors import DownloadError
from freeflow_core.plugin import WeightFile
from freeflow_core.weights.hub_listing import find_in_repository
from freeflow_core.weights.options import TransferOptions
from freeflow_core.weights.text import by_hand


@dataclass(frozen=True)
class Address:
    """Where to send the request. ``headers`` may hold the user's token: never printed."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def address_of(weight: WeightFile, options: TransferOptions) -> Address:
    """Where a weight is fetched from. On the hub: at ``HF_ENDPOINT`` if set, with the user's token if there is one.

    Asks the network only for weights whose name in their repository is not known.

    Files on the hub take the same road as all others, rather than ``hf_hub_download``: that one begins again after an
    interruption, since it deletes its unfinished file, and its headers tell about the machine.

    Raises:
        DownloadError: the weights have no address, or one that the hub cannot have, or cannot be found there.
    """
    if weight.url is not None:
        return Address(weight.url)
    if weight.repository is None:
        raise DownloadError(
            f"The weights {weight.name!r} have no direct link, so nothing can fetch them for you: {by_hand(weight)}."
        )
    from huggingface_hub import constants, get_token, hf_hub_url  # 0.1 s, and only some weights lie there

    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    filename = weight.filename
    if weight.pattern is not None:
        filename = find_in_repository(weight, endpoint, headers, options)
    try:
        url = hf_hub_url(weight.repository, filename, revision=weight.revision, endpoint=endpoint)
    except ValueError as error:
        raise DownloadError(
            f"The weights {weight.name!r} name {weight.repository!r}, which is no repository of the hub: {error} "
            "That is a mistake of the plugin that offers them."
        ) from error
    return Address(url, headers)


def describe_origin(weight: WeightFile) -> str:
    """A few words for a table."""
    if weight.repository is not None:
        return f"hub {weight.repository}"
    return (urlsplit(weight.url).hostname or weight.url) if weight.url is not None else "by hand"
