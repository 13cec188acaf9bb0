"""Looks at every image before training starts, so that a bad one shows then and not in the middle of a run."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_data.config import ImageFolderConfig
from freeflow_data.image_files import Listing, list_images
from freeflow_data.image_header import ImageHeader, UnusableImage, read_header
from freeflow_data.labels import Labels, labels_from_file, labels_from_folders
from freeflow_data.problems import Problems

_log = logging.getLogger("freeflow")
_SECONDS_BETWEEN_LINES = 10.0
_ADVICE = "Repair or remove them."


@dataclass(frozen=True)
class Scan:
    """The images to use: ``files`` relative to ``root``, their ``labels`` int64 (M,) if any, and what they become."""

    root: Path
    files: list[str]
    labels: Tensor | None
    num_classes: int | None
    image_shape: tuple[int, int, int]


def scan_folder(config: ImageFolderConfig) -> Scan:
    """List, label and check the images of a folder.

    Raises:
        ConfigError: nothing can be used; or, unless such images are skipped, some are damaged, unlabelled or of
            another size.
    """
    listing = list_images(config.path.expanduser())
    problems = Problems(f"The image folder {listing.root}")
    labels = _labels(config, listing)
    wanted = listing.files
    absent: list[str] = []
    if labels is not None:
        absent = sorted(labels.of.keys() - set(wanted))
        problems.add("in the labels but not in the folder", absent)
        problems.add("without a label", [name for name in wanted if name not in labels.of])
        wanted = [name for name in wanted if name in labels.of]
        highest = config.num_classes or labels.num_classes
        outside = [name for name in wanted if not 0 <= labels.of[name] < highest]
        problems.add(f"label outside 0 to {highest - 1}", [f"{name}: {labels.of[name]}" for name in outside])
        wanted = [name for name in wanted if 0 <= labels.of[name] < highest]
    whole, headers = _check(listing.root, wanted, config, problems)
    files, size = _one_size(whole, headers, config, problems)
    problems.settle(config.on_error, len(listing.files) + len(absent), _ADVICE)
    channels = config.channels or (1 if all(header.grey for header in headers.values()) else 3)
    if labels is None:
        return Scan(listing.root, files, None, None, (channels, *size))
    _check_classes(problems.where, wanted, labels, files)
    classes = torch.tensor([labels.of[name] for name in files])
    return Scan(listing.root, files, classes, config.num_classes or labels.num_classes, (channels, *size))


def _labels(config: ImageFolderConfig, listing: Listing) -> Labels | None:
    kind = config.labels
    if kind == "auto":
        kind = "folders" if any("/" in name for name in listing.files) else "none"
    if kind == "none":
        if config.num_classes is not None:
            raise ConfigError(
                f"source.num_classes={config.num_classes} is set, but the images in {listing.root} have no labels. "
                "Sort them into one folder a class, give source.labels=FILE.csv, or leave num_classes out."
            )
        return None
    if kind != "folders":
        return labels_from_file(Path(kind).expanduser())
    if listing.empty_folders:
        unit = Problems(f"The image folder {listing.root}", "sub-folders, one a class,")
        unit.add("without an image", listing.empty_folders)
        total = len(listing.empty_folders) + len({name.split("/")[0] for name in listing.files if "/" in name})
        unit.settle(config.on_error, total, "Fill or remove them.")
    labels = labels_from_folders(listing.files)
    if not labels.of:
        raise ConfigError(
            f"source.labels=folders, but no image in {listing.root} lies in a sub-folder. Sort them into one folder a "
            "class, or give source.labels=none or a .csv file."
        )
    if config.num_classes is not None and labels.num_classes > config.num_classes:
        raise ConfigError(
            f"The image folder {listing.root} has {labels.num_classes} sub-folders with images, more than "
            f"source.num_classes={config.num_classes}. Each is a class; correct one of the two."
        )
    return labels


def _check(
    root: Path, files: list[str], config: ImageFolderConfig, problems: Problems
) -> tuple[list[str], dict[str, ImageHeader]]:
    """The files that were not found bad, and the headers seen; with ``check: none`` one good header is enough."""
    bad: defaultdict[str, list[str]] = defaultdict(list)
    headers: dict[str, ImageHeader] = {}
    known: dict[ImageHeader, ImageHeader] = {}

    def look(name: str) -> ImageHeader | str:
        try:
            return read_header(root / name, decode=config.check == "decode")
        except UnusableImage as reason:
            return str(reason)

    told = time.monotonic()
    with ThreadPoolExecutor(config.workers) as pool:
        found_of = map(look, files) if config.check == "none" else pool.map(look, files)
        for number, (name, found) in enumerate(zip(files, found_of, strict=False), 1):
            if isinstance(found, str):
                bad[found].append(name)
                continue
            headers[name] = known.setdefault(found, found)  # millions of files, few different headers
            if config.check == "none":
                break
            if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                _log.info("Checked %s of %s images in %s.", f"{number:,}", f"{len(files):,}", root)
    for kind, names in bad.items():
        problems.add(kind, names)
    rejected = {name for names in bad.values() for name in names}
    return [name for name in files if name not in rejected], headers


def _one_size(
    files: list[str], headers: Mapping[str, ImageHeader], config: ImageFolderConfig, problems: Problems
) -> tuple[list[str], tuple[int, int]]:
    """The files to use, and the (height, width) they come in: the commonest, unless they are resized anyway."""
    if config.size is not None:
        return files, (config.size, config.size)
    sizes = Counter(header.size for header in headers.values())
    if not sizes:
        return [], (0, 0)
    size = sizes.most_common(1)[0][0]
    others = {name: header.size for name, header in headers.items() if header.size != size}
    problems.add(
        f"not {_pixels(size)} pixels like most (source.size=N would resize all)",
        [f"{name}: {_pixels(other)}" for name, other in others.items()],
    )
    return [name for name in files if name not in others], size


def _check_classes(where: str, wanted: list[str], labels: Labels, files: list[str]) -> None:
    """A class that loses all its images would be trained on nothing: refused even when bad images are skipped."""
    lost = {labels.of[name] for name in wanted} - {labels.of[name] for name in files}
    if lost:
        example = next(name for name in wanted if labels.of[name] in lost)
        raise ConfigError(
            f"{where}: classes without an image that can be used: {len(lost)}, such as class {min(lost)} ({example}). "
            f"{_ADVICE}"
        )


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
