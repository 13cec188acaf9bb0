"""Makes the codec of small grey images: ``python -m freeflow_data.train_autoencoder --output PATH``.

Trained on the training images alone, so that held-out images stay unseen by what encodes and decodes them.
"""

import hashlib
import math
import time
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from torch import Tensor

from freeflow_core.errors import FreeflowError
from freeflow_core.network_file import save_network
from freeflow_core.types import NetworkState
from freeflow_data.mnist import read_pair
from freeflow_data.small_vae import FAMILY, SmallAutoencoder

_BATCH_SIZE = 64
_LEARNING_RATE = 3e-3
_WARMUP_STEPS = 100
_BETAS = (0.9, 0.99)
_WEIGHT_DECAY = 0.01
_CHUNK = 500


def train(images: Tensor, steps: int, kl_weight: float, seed: int) -> SmallAutoencoder:
    """An autoencoder of uint8 ``images`` (M, 1, H, W), frozen; a function of its arguments alone.

    The loss is the mean squared error per pixel in [-1, 1], decoded from a draw of the posterior, plus ``kl_weight``
    times the mean divergence in nats per latent from a standard normal. For a decoder of Gaussian pixels of deviation
    s that is the evidence bound at kl_weight = s^2 / 2 times latents over padded pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the starting weights, which torch draws from its global generator
        channels, height, width = images.shape[1:]
        network = SmallAutoencoder((channels, height, width))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's annotations
    optimizer = torch.optim.AdamW(
        network.parameters(), _LEARNING_RATE, betas=_BETAS, weight_decay=_WEIGHT_DECAY, foreach=True
    )
    for step in range(steps):
        for group in optimizer.param_groups:
            decay = 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = _LEARNING_RATE * decay * min(1.0, (step + 1) / _WARMUP_STEPS)
        rows = torch.randint(len(images), (_BATCH_SIZE,), generator=generator)
        x = _pixels(images[rows]).contiguous(memory_format=torch.channels_last)
        mean, log_variance = network.encode(x)
        latents = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator)
        error = (network.decode(latents) - x).square().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        optimizer.zero_grad()
        (error + kl_weight * divergence).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # likewise
    network.eval().requires_grad_(False)
    set_scaling(network, images)
    return network


@torch.no_grad()
def set_scaling(network: SmallAutoencoder, images: Tensor) -> None:
    """Make draws of the latents of uint8 ``images`` zero-mean with unit deviation, channel by channel."""
    total = torch.zeros(2, network.latent_shape[0], dtype=torch.float64)
    count = 0
    for part in torch.split(images, _CHUNK):
        mean, log_variance = network.encode(_pixels(part))
        mean, variance = mean.double(), log_variance.double().exp()
        total += torch.stack([mean.sum((0, 2, 3)), (mean.square() + variance).sum((0, 2, 3))])
        count += mean[:, 0].numel()
    first, second = total / count
    network.shift.copy_(first)
    network.scale.copy_((second - first.square()).rsqrt())


@torch.no_grad()
def peak_signal_to_noise(network: SmallAutoencoder, images: Tensor) -> float:
    """Decibels between uint8 ``images`` and their reconstructions from the posterior's mean, over all pixels."""
    errors = [
        (network.decode(network.encode(x)[0]).clamp(-1, 1) - x).double().square().mean((1, 2, 3))
        for x in map(_pixels, torch.split(images, _CHUNK))
    ]
    return 10 * math.log10(4 / float(torch.cat(errors).mean()))


def _pixels(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def main(
    output: Annotated[Path, typer.Option(help="Where to write the .safetensors file, as float16.")],
    data: Annotated[
        Literal["mnist", "fashion-mnist"],
        typer.Option(help="Which data set of four idx files; it names the folder when --path does not."),
    ] = "mnist",
    path: Annotated[Path | None, typer.Option(help="Folder with the idx files; default: data/NAME.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of 64 images.")] = 4_000,
    kl_weight: Annotated[float, typer.Option(min=0, help="Weight of the divergence: above, a smoother space.")] = 3e-3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights, the batches and the posterior's draws.")] = 0,
) -> None:
    """Train an autoencoder of small grey images and write it."""
    torch.set_num_threads(1)  # sums are then taken in the same order wherever it runs
    try:
        folder = (Path("data") / data) if path is None else path.expanduser()
        training, test = (read_pair(folder, part, "refuse") for part in ("train", "t10k"))
        images, held_out = training.read(training.rows), test.read(test.rows)
        started = time.perf_counter()
        network = train(images, steps, kl_weight, seed)
        seconds = time.perf_counter() - started
        scores = {"held_out_psnr": round(peak_signal_to_noise(network, held_out), 2)}
        facts = {
            "data": data,
            "seed": seed,
            "steps": steps,
            "kl_weight": kl_weight,
            "training_digest": hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest(),
            **scores,
        }
        state = NetworkState(FAMILY, network.config, network.state_dict())
        save_network(output, state, facts, dtype=torch.float16)
    except (FreeflowError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    parameters = sum(p.numel() for p in network.parameters())
    typer.echo(f"{output}: {parameters} parameters, {output.stat().st_size} bytes, {seconds:.0f} s, {scores}")


if __name__ == "__main__":
    typer.run(main)
