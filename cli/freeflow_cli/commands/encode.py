"""``freeflow encode``: latents of all images of a source, computed once."""

from __future__ import annotations

import shlex
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

import typer

from freeflow_cli.commands import options
from freeflow_cli.console import is_main_process, print_line, print_next, shown_path
from freeflow_cli.session import Session
from freeflow_core.errors import ConfigError


def encode(
    context: typer.Context,
    source: options.SourceName = None,
    codec: options.CodecName = "sd-vae",
    assignments: Annotated[list[str] | None, options.settings("source.X= or codec.X=value.")] = None,
    output: Annotated[Path, options.folder("Folder to write.")] = Path("latents"),
    num: Annotated[int | None, typer.Option("--num", "-n", min=1, help="Images to encode; default: all.")] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Encode the mirrored images too.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images the codec gets at once.")] = 32,
    shard_size: Annotated[int, typer.Option(min=1, help="Images in a file.")] = 4096,
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="Type the latents are stored in.")] = "float32",
    device: options.Device = "auto",
) -> None:
    """Compute the latents of a source's images once, for the source `latents`. Run it again to go on."""
    if source is None:
        raise ConfigError(
            "Nothing to encode. Name the images: --source image-folder --set source.path=FOLDER. "
            "`freeflow plugins list --kind source` shows all sources."
        )
    session = Session.of(context)
    session.registry(source=source, codec=codec)
    from freeflow_cli.progress import CountProgress
    from freeflow_core import api

    with closing(CountProgress("encode")) as progress:
        result = api.encode(
            source=source,
            codec=codec,
            output=output,
            settings=tuple(assignments or ()),
            num=num,
            flip=flip,
            batch_size=batch_size,
            shard_size=shard_size,
            dtype=dtype,
            device=device,
            on_progress=progress.advance,
            manager=session.manager,
        )
    if not is_main_process():
        return
    shape, folder = " x ".join(map(str, result.state_shape)), shown_path(result.folder)
    print_line(f"{result.num_images:,} latents of {shape} in {result.num_shards:,} shards.")
    if not result.written:
        print_line("They were all there already.")
    print_line(f"Written: {folder}")
    settings = [f"source.path={folder}", f"codec={codec}", *(a for a in assignments or () if a.startswith("codec."))]
    settings += ["reference=null", "evaluation.enabled=false"]
    given = [part for setting in settings for part in ("--set", setting)]
    print_next([shlex.join(["freeflow", "pretrain", "--source", "latents", *given])])
