"""Weights on the Hugging Face hub, and the copies of them that other programs have fetched already."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from freeflow_core import __version__
from freeflow_core.errors import ConfigError, DownloadError
from freeflow_core.plugin import WeightFile
from freeflow_core.weights.cache import file_size, offline_variable, read_content
from freeflow_core.weights.failures import by_hand, network_failure, refused_status

USER_AGENT = f"freeflow/{__version__}"
HUB_PREFIX = "hf:"
"""Before ``owner/name`` or ``owner/name@revision``, where a student's name is asked for."""
_SHOWN = 12
_LOG = logging.getLogger("freeflow")


def describe_origin(weight: WeightFile) -> str:
    """A few words for a table."""
    if weight.repository is not None:
        return f"hub {weight.repository}"
    return (urlsplit(weight.url).hostname or weight.url) if weight.url is not None else "by hand"


def find_hub_copy(weight: WeightFile) -> Path | None:
    """The file in the user's Hugging Face cache; None when it is not there, when it is another version than the
    declaration describes, and when only a pattern of its name is known: see :func:`locate`."""
    if weight.repository is None or weight.pattern is not None:
        return None
    from huggingface_hub import try_to_load_from_cache  # 0.1 s, and only some weights lie there

    try:
        found = try_to_load_from_cache(weight.repository, weight.filename, revision=weight.revision)
    except ValueError:  # no repository of the hub: told when it comes to fetching
        return None
    if not isinstance(found, str):
        return None
    path = Path(found)
    same = weight.size in (None, file_size(path))
    if same and (weight.sha256 is None or weight.sha256 == (stated_sha256(path) or read_content(path).sha256)):
        return path
    _LOG.info("The Hugging Face cache holds another version of the weights %r: %s.", weight.name, path)
    return None


def stated_sha256(hub_copy: Path) -> str | None:
    """SHA-256 of a large file in the Hugging Face cache, which stores it under this name."""
    stored = hub_copy.resolve().name
    return stored if re.fullmatch("[0-9a-f]{64}", stored) else None


def address_of(weight: WeightFile) -> tuple[str, dict[str, str]]:
    """Where a weight is fetched from, and the headers for it. Raises ``DownloadError`` where that is nowhere.

    Not ``hf_hub_download``: it begins again after an interruption, and its headers tell about the machine.
    """
    if weight.url is not None:
        return weight.url, {}
    if weight.repository is None:
        raise DownloadError(f"The weights {weight.name!r} have no direct link to fetch: {by_hand(weight)}.")
    from huggingface_hub import hf_hub_url

    endpoint, headers = _hub()
    try:
        return hf_hub_url(weight.repository, weight.filename, revision=weight.revision, endpoint=endpoint), headers
    except ValueError as error:
        raise DownloadError(
            f"The weights {weight.name!r} name {weight.repository!r}, which is no repository of the hub: {error} "
            "That is a mistake of the plugin that offers them."
        ) from error


def locate(weight: WeightFile, timeout: tuple[float, float]) -> WeightFile:
    """The weight with its path in its repository as ``filename``: what ``pattern`` finds among the weight files there.

    Raises ``DownloadError`` when the repository cannot be listed, or not just one of its files is meant.
    """
    if weight.pattern is None:
        return weight
    endpoint, headers = _hub()
    url = f"{endpoint}/api/models/{weight.repository}/revision/{weight.revision}"
    try:
        answer = requests.get(url, headers={"User-Agent": USER_AGENT, **headers}, timeout=timeout)
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        raise network_failure(weight, url, error) from error
    if answer.status_code != requests.codes.ok:
        raise refused_status(weight, url, answer)
    try:
        paths = sorted(str(entry["rfilename"]) for entry in answer.json()["siblings"])
    except (requests.JSONDecodeError, KeyError, TypeError) as error:
        raise DownloadError(
            f"{url} answered with something other than a list of files, so the weights {weight.name!r} cannot be "
            f"found there. Check the proxy, or {by_hand(weight)}."
        ) from error
    weights = [path for path in paths if path.endswith((".safetensors", ".pt", ".pth"))]
    found = [path for path in weights if re.search(weight.pattern, path, re.IGNORECASE)]
    if len(found) == 1:
        return replace(weight, filename=found[0], pattern=None)
    more = f" and {len(weights) - _SHOWN} more" if len(weights) > _SHOWN else ""
    raise DownloadError(
        f"The publisher's name for the weights {weight.name!r} is not known here, and {len(found) or 'none'} of the "
        f"weight files of {weight.repository} look like it, where one was expected. There are: "
        f"{', '.join(weights[:_SHOWN]) or 'none'}{more}. Choose by their page and {by_hand(weight)}."
    )


def _hub() -> tuple[str, dict[str, str]]:
    """The hub's address, ``HF_ENDPOINT`` if set, and a header with the user's token if there is one: never printed."""
    from huggingface_hub import constants, get_token

    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT, headers


def is_hub_name(name: str | Path) -> bool:
    """Whether ``name`` begins with ``hf:``."""
    return str(name).startswith(HUB_PREFIX)


def hub_folder(name: str, patterns: Sequence[str]) -> Path:
    """The folder in the user's Hugging Face cache with the files of ``name`` that ``patterns`` choose, downloaded
    where they are not there or not the newest of their revision.

    Raises:
        ConfigError: no such name.
        DownloadError: the repository is not there, private or out of reach, or holds no such files.
    """
    repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ConfigError(f"{name!r} names no repository of the hub; expected {HUB_PREFIX}OWNER/NAME[@REVISION].")
    with hub_errors(repository):
        from huggingface_hub import snapshot_download

        found = Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=list(patterns),
                endpoint=_hub()[0],
                library_name="freeflow",
                library_version=__version__,
                local_files_only=offline_variable() is not None,
            )
        )
    if not (found / patterns[0]).is_file():
        raise DownloadError(
            f"The repository {repository} holds no {patterns[0]}, so it is no student that `freeflow push` wrote. "
            "One that is a diffusers pipeline alone is loaded by DiffusionPipeline.from_pretrained."
        )
    return found


def hub_client(*, writing: bool = False) -> Any:
    """``huggingface_hub.HfApi`` of ``HF_ENDPOINT``. Raises ``ConfigError`` where it could not write."""
    from huggingface_hub import HfApi, get_token

    if writing and (variable := offline_variable()) is not None:
        raise ConfigError(f"{variable} forbids to use the network, so nothing can be pushed. Unset it.")
    if writing and get_token() is None:
        raise ConfigError(
            "There is no Hugging Face token, and only its owner can write to a repository. Log in with `hf auth "
            "login`, or set HF_TOKEN to a token with write access (https://huggingface.co/settings/tokens)."
        )
    return HfApi(endpoint=_hub()[0], library_name="freeflow", library_version=__version__)


@contextmanager
def hub_errors(repository: str, *, writing: bool = False) -> Iterator[None]:
    """What ``huggingface_hub`` raises inside, as this project's errors: what came, and what to do."""
    from huggingface_hub import errors

    hub, verb = _hub()[0], "pushed to" if writing else "fetched from"
    try:
        yield
    except errors.HFValidationError as error:
        raise ConfigError(f"{repository!r} is no repository of the hub: expected OWNER/NAME. {error}") from error
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repository} can be used only by those who accepted its terms: do so at {hub}/{repository}, then log in "
            "with `hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"There is no repository {repository} at {hub}, or it is private and you are not let in. Check the name; "
            "for a private one log in with `hf auth login`, or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"The repository {repository} has no such revision. {_first_line(error)}") from error
    except errors.LocalEntryNotFoundError as error:
        variable = offline_variable()
        why = f"{variable} forbids to fetch it" if variable else f"{hub} cannot be reached ({_first_line(error)})"
        raise DownloadError(
            f"{repository} is not in the Hugging Face cache, and {why}. Fetch it once where there is a network, or "
            "give the path of a copy."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        refused = {401: "the token is not valid", 403: "the token may not write there"}.get(status or 0)
        hint = " Use a token with write access: `hf auth login`, or HF_TOKEN." if refused else " Try again later."
        raise DownloadError(f"{repository} cannot be {verb} {hub}: {refused or _first_line(error)}.{hint}") from error
    except Exception as error:  # no connection, by whatever library the version of the hub's client uses
        ours = type(error).__module__.startswith(("httpx", "requests", "huggingface_hub"))
        if not ours and not isinstance(error, ConnectionError | TimeoutError):
            raise
        raise DownloadError(
            f"{hub} cannot be reached ({_first_line(error)}), so {repository} cannot be {verb} it. Check the network, "
            "the proxy and HF_ENDPOINT."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
