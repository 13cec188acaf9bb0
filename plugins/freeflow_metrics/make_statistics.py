"""Makes reference statistics of a source: ``python -m freeflow_metrics.make_statistics --output PATH.npz``.

With them a run is scored against images that are not there: `reference_statistics` of the evaluator `frechet`.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from torch import Tensor

from freeflow_core.config.load import lay_settings
from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.files import replacing
from freeflow_metrics.config import FrechetConfig
from freeflow_metrics.features import FeatureNetwork, build_features, image_features
from freeflow_metrics.frechet import RunningMoments
from freeflow_metrics.train_features import SourceSettings, make_source


def statistics(network: FeatureNetwork, images: Tensor) -> RunningMoments:
    """Mean and covariance of the features of uint8 ``images`` (M, C, H, W)."""
    moments = RunningMoments(network.dim)
    for features in image_features(network, images):
        moments.update(features)
    return moments


def main(
    output: Annotated[Path, typer.Option(help="Where to write the .npz file with mu, sigma and count.")],
    source: Annotated[str, typer.Option(help="Name of a source with images in memory.")] = "mnist",
    settings: SourceSettings = None,
    split: Annotated[Literal["held-out", "training"], typer.Option(help="Which of its images.")] = "held-out",
    features: Annotated[str, typer.Option(help="A packaged feature network, or file.")] = "mnist",
    features_file: Annotated[Path | None, typer.Option(help="With features file: the network.")] = None,
) -> None:
    """Mean and covariance of the features of a source's images."""
    torch.set_num_threads(1)  # sums are then taken in the same order wherever it runs
    try:
        built = make_source(source, lay_settings({}, settings or ()))
        found = built.held_out() if split == "held-out" else built.training_images()
        if found is None:
            raise ConfigError(f"The source {source!r} has no {split} images in memory. Name one that has.")
        config = FrechetConfig.model_validate({"features": features, "features_file": features_file})
        moments = statistics(build_features(config), found[0])
        mean, covariance, count = moments.mean.numpy(), moments.covariance.numpy(), np.int64(moments.count)
        with replacing(output) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, mu=mean, sigma=covariance, count=count)
    except (FreeflowError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{output}: {moments.count} images, {len(moments.mean)} features, {output.stat().st_size} bytes")


if __name__ == "__main__":
    typer.run(main)
