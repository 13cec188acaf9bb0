"""A folder of image files: listed, labelled and checked before training starts, decoded when they are asked for."""

import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_data.config import ImageFolderConfig
from freeflow_data.image_file import DAMAGED, ImageHeader, UnusableImage, decode_image, read_header
from freeflow_data.images import Images, ImageSource, Problems, Rows
from freeflow_data.labels import Labels, labels_from_file, labels_from_folders

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_log = logging.getLogger("freeflow")
_SECONDS_BETWEEN_LINES = 10.0
_ADVICE = "Repair or remove them."


@final
class ImageFolderSource(ImageSource):
    """PNG, JPEG, WebP and BMP files under a folder, with classes from sub-folders or a file, or without any."""

    def __init__(self, config: ImageFolderConfig) -> None:
        """Lists and checks all images. Raises ``ConfigError`` as :func:`scan_folder` does."""
        scan = scan_folder(config)

        def read(rows: Rows) -> Tensor:
            images = np.empty((len(rows), *scan.image_shape), dtype=np.uint8)
            for place, row in enumerate(rows.tolist()):
                images[place] = _decode(scan.root / scan.files[row], scan.image_shape, config)
            return torch.from_numpy(images)

        images = Images(read, scan.image_shape, np.arange(len(scan.files)), scan.labels)
        kept, held = images.split(config.held_out, config.split_seed)
        super().__init__(kept, held, scan.num_classes, config, config.workers)


def _decode(path: Path, shape: tuple[int, int, int], config: ImageFolderConfig) -> np.ndarray:
    try:
        pixels = decode_image(path, shape[0], config.size, config.resize)
    except DAMAGED as error:
        raise ConfigError(
            f"The image {path} cannot be decoded: {error}. Its header was in order; source.check=decode finds such "
            "images before training, and with source.on_error=skip leaves them out."
        ) from error
    if pixels.shape != shape:
        raise ConfigError(
            f"The image {path} is {pixels.shape}, the others {shape}. Set source.size to resize them, or "
            "source.check=headers to have all sizes looked at before training."
        )
    return pixels


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
    root = config.path.expanduser()
    wanted = found = list_images(root)
    problems = Problems(f"The image folder {root}")
    labels = _labels(config, root, found)
    absent: list[str] = []
    if labels is not None:
        absent = sorted(labels.of.keys() - set(found))
        problems.add("in the labels but not in the folder", absent)
        problems.add("without a label", [name for name in found if name not in labels.of])
        num_classes = config.num_classes or labels.num_classes
        known = {name: labels.of[name] for name in found if name in labels.of}
        outside = {name: label for name, label in known.items() if not 0 <= label < num_classes}
        problems.add(f"label outside 0 to {num_classes - 1}", [f"{name}: {label}" for name, label in outside.items()])
        wanted = [name for name in known if name not in outside]
    files, size, grey = _check(root, wanted, config, problems)
    problems.settle(config.on_error, len(found) + len(absent), _ADVICE)
    shape = (config.channels or (1 if grey else 3), *size)
    if labels is None:
        return Scan(root, files, None, None, shape)
    if lost := {labels.of[name] for name in wanted} - {labels.of[name] for name in files}:
        # It would be trained on nothing: refused even when bad images are skipped.
        example = next(name for name in wanted if labels.of[name] in lost)
        raise ConfigError(
            f"{problems.where}: classes without an image that can be used: {len(lost)}, such as class {min(lost)} "
            f"({example}). {_ADVICE}"
        )
    return Scan(root, files, torch.tensor([labels.of[name] for name in files]), num_classes, shape)


def list_images(root: Path) -> list[str]:
    """Every image under ``root``, by path relative to it with ``/``, sorted; ``ConfigError`` where there is none.

    Links are followed; names that begin with a dot are passed over.
    """
    if not root.is_dir():
        raise ConfigError(f"There is no folder {root} with images. Check source.path; a relative path starts here.")
    files: list[str] = []
    others: Counter[str] = Counter()
    try:
        for name in _walk(root):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES:
                files.append(name)
            else:
                others[suffix or name] += 1
    except OSError as error:
        raise ConfigError(f"The image folder {root} cannot be read: {error}.") from None
    if not files:
        found = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(4))
        raise ConfigError(
            f"The image folder {root} holds no image ({', '.join(SUFFIXES)}) at any depth; "
            + (f"other files: {found}. " if others else "it is empty. ")
            + "Check source.path, or convert the images."
        )
    return sorted(files)


def _walk(root: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(folder).relative_to(root)
        yield from ((inside / name).as_posix() for name in names if not name.startswith("."))


def _labels(config: ImageFolderConfig, root: Path, files: list[str]) -> Labels | None:
    in_folders = {name.split("/", 1)[0] for name in files if "/" in name}
    kind = config.labels
    if kind == "auto":
        kind = "folders" if in_folders else "none"
    if kind == "none":
        if config.num_classes is not None:
            raise ConfigError(
                f"source.num_classes={config.num_classes} is set, but the images in {root} have no labels. Sort them "
                "into one folder a class, give source.labels=FILE.csv, or leave num_classes out."
            )
        return None
    if kind != "folders":
        return labels_from_file(Path(kind).expanduser())
    if not in_folders:
        raise ConfigError(
            f"source.labels=folders, but no image in {root} lies in a sub-folder. Sort them into one folder a class, "
            "or give source.labels=none or a .csv file."
        )
    if config.num_classes is not None and len(in_folders) > config.num_classes:
        raise ConfigError(
            f"The image folder {root} has {len(in_folders)} sub-folders with images, more than "
            f"source.num_classes={config.num_classes}. Each is a class; correct one of the two."
        )
    folders = {entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")}
    empty = Problems(f"The image folder {root}", "sub-folders, one a class,")
    empty.add("without an image", sorted(folders - in_folders))
    empty.settle(config.on_error, len(folders), "Fill or remove them.")
    return labels_from_folders(files)


def _check(
    root: Path, files: list[str], config: ImageFolderConfig, problems: Problems
) -> tuple[list[str], tuple[int, int], bool]:
    """The files to use, the (height, width) they come in, and whether all are grey.

    The size is the commonest, unless they are resized anyway. With ``check: none`` one good header speaks for all.
    """
    kinds: defaultdict[ImageHeader | str, list[str]] = defaultdict(list)

    def look(name: str) -> ImageHeader | str:
        try:
            return read_header(root / name, decode=config.check == "decode")
        except UnusableImage as reason:
            return str(reason)

    told = time.monotonic()
    with ThreadPoolExecutor(config.workers) as pool:
        found = map(look, files) if config.check == "none" else pool.map(look, files)
        for number, (name, kind) in enumerate(zip(files, found, strict=False), 1):
            kinds[kind].append(name)
            if config.check == "none" and isinstance(kind, ImageHeader):
                break
            if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                _log.info("Checked %s of %s images in %s.", f"{number:,}", f"{len(files):,}", root)
    headers = {kind: names for kind, names in kinds.items() if isinstance(kind, ImageHeader)}
    unusable = {kind: names for kind, names in kinds.items() if isinstance(kind, str)}
    for kind, names in unusable.items():
        problems.add(kind, names)
    size, other_size = (config.size or 0, config.size or 0), {}
    if config.size is None and headers:
        count: Counter[tuple[int, int]] = Counter()
        for header, names in headers.items():
            count[header.size] += len(names)
        size = count.most_common(1)[0][0]
        other_size = {name: header.size for header, names in headers.items() if header.size != size for name in names}
        problems.add(
            f"not {size[1]} x {size[0]} pixels like most (source.size=N would resize all)",
            [f"{name}: {width} x {height}" for name, (height, width) in other_size.items()],
        )
    rejected = {name for names in unusable.values() for name in names} | other_size.keys()
    return [name for name in files if name not in rejected], size, all(header.grey for header in headers)
