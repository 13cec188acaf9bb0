"""What a codec loses: its reconstructions of MNIST's test images beside the images themselves.

python benchmarks/reconstruction.py data/mnist [--checkpoint own.safetensors]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from freeflow_data.mnist import read_pair
from freeflow_data.small_vae import SmallVAECodec, load_autoencoder, packaged_autoencoder
from freeflow_metrics.features import SmallFeatures
from freeflow_metrics.frechet import frechet_distance
from freeflow_metrics.make_statistics import statistics

from freeflow_core.math.random import PhiloxDraws


def main(folder: Path, checkpoint: Path | None) -> None:
    """Print the Fréchet distance to the images and the signal to noise ratio, of means, draws, and disturbed draws."""
    network = packaged_autoencoder() if checkpoint is None else load_autoencoder(checkpoint)
    codec, features = SmallVAECodec(network, torch.device("cpu")), SmallFeatures.packaged("mnist")
    test = read_pair(folder, "t10k", "refuse")
    images = test.read(test.rows)
    real = statistics(features, images)
    mean, std = codec.moments(images)
    draws = PhiloxDraws(0, torch.arange(len(images)))
    drawn = mean + std * draws.noise("posterior", tuple(mean.shape[1:]))
    disturbance = draws.noise("disturbance", tuple(mean.shape[1:]))
    rows = {"mean": mean, "draw": drawn} | {f"draw + {s} noise": drawn + s * disturbance for s in (0.1, 0.2, 0.3)}
    print(f"share of the states' variance that the posterior draws: {float(std.square().mean()):.3f}")
    for name, states in rows.items():
        decoded = codec.decode(states)
        made = statistics(features, decoded)
        distance = frechet_distance(real.mean, real.covariance, made.mean, made.covariance)
        error = float((decoded.double() - images.double()).square().mean())
        print(f"{name:18} Fréchet {distance:.4f}   {10 * math.log10(255**2 / error):.2f} dB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.checkpoint)
