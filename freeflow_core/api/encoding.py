"""States of a source's images, computed once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from freeflow_core.config import RuntimeConfig
from freeflow_core.engine.build import Builder
from freeflow_core.engine.process import start_accelerator
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Source
from freeflow_core.plugin import Manager, Registry
from freeflow_core.tools.encode import (
    Encoded,
    EncodeProgress,
    Job,
    LatentsEncoder,
    LatentsFolder,
    StoredType,
    check_encodable,
    encode_choices,
)


def encode(
    *,
    source: str,
    codec: str = "sd-vae",
    output: Path = Path("latents"),
    settings: Iterable[str] = (),
    num: int | None = None,
    flip: bool = False,
    batch_size: int = 32,
    shard_size: int = 4096,
    dtype: StoredType = "float32",
    device: str = "auto",
    on_progress: EncodeProgress | None = None,
    manager: Manager | None = None,
) -> Encoded:
    """Compute the states of a source's images once, for training with the source ``latents``.

    A folder with a part of the same job is gone on with, and a complete one left as it is. Under a launcher the
    shards are shared out between the processes.

    Args:
        settings: ``source.option=value`` and ``codec.option=value`` strings.
        num: images to encode, from the source's first on; None for all of its training images.
        flip: encode the mirrored images too.
        batch_size: images the codec gets at once.
        shard_size: images in a file.
        dtype: type the states are stored in.
        on_progress: told images done and images to do, of this process.

    Raises:
        ConfigError: parts or numbers that do not fit; a folder that holds another job.
        Interrupted: Ctrl-C or SIGTERM; what is whole stays.
        FreeflowError: states that are not finite, or a full disk.
    """
    if batch_size < 1 or shard_size < 1:
        raise ConfigError(f"The batch and shard sizes must be at least 1, got {batch_size} and {shard_size}.")
    registry = Registry(manager or Manager.load())
    chosen = encode_choices(registry, source, codec, settings)
    accelerator = start_accelerator(RuntimeConfig.model_validate({"device": device}))
    builder = Builder(registry, accelerator.device, seed=0)
    images: Source = builder.build("source", chosen["source"])
    described = {kind: choice.model_dump(mode="json") for kind, choice in chosen.items()}
    job = Job(described["source"], described["codec"], check_encodable(source, images, num), shard_size, flip, dtype)
    encoder = LatentsEncoder(LatentsFolder(output, job), accelerator)
    network = builder.build("codec", chosen["codec"], source=images)
    return encoder.run(images, network, batch_size, on_progress or (lambda done, total: None))
