"""Makes the packaged digits features: ``python -m freeflow_metrics.train_digits_features --output PATH``.

Trained on the training split of the ``digits`` source alone, so that held-out images stay unseen by what scores them.
"""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn import functional

from freeflow_core.interfaces import BuildContext, Source
from freeflow_core.network_file import save_network
from freeflow_core.plugin.manager import Manager
from freeflow_core.plugin.registry import Registry
from freeflow_core.types import NetworkState
from freeflow_metrics.digits_network import FAMILY, DigitsNetwork

_BATCH_SIZE = 128
_LEARNING_RATE = 2e-3
_WARMUP_STEPS = 50
_WEIGHT_DECAY = 0.01
_DROPOUT = 0.2
_LABEL_SMOOTHING = 0.05
_NOISE = 0.1
_SHIFT_PIXELS = 1.0


def digits_source() -> Source:
    """The ``digits`` source with its default split, through the registry as any run gets it."""
    registry = Registry(Manager.load())

    def component(kind: str, name: str, options: dict[str, Any]) -> Any:
        found = registry.component(kind, name)
        return found.load_target().from_config(found.load_config_class().model_validate(options), context)

    context = BuildContext(device=torch.device("cpu"), seed=0, component=component)
    source: Source = component("source", "digits", {})
    return source


def train(images: Tensor, labels: Tensor, steps: int, seed: int) -> DigitsNetwork:
    """A network trained on uint8 ``images`` (M, 1, 8, 8) and ``labels`` (M,); a function of its arguments alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitsNetwork()
        parameters = list(network.parameters())
        optimizer = torch.optim.AdamW(parameters, _LEARNING_RATE, weight_decay=_WEIGHT_DECAY, foreach=True)
        pixels = images.float() / 127.5 - 1
        for step in range(steps):
            for group in optimizer.param_groups:
                decay = 0.5 * (1 + math.cos(math.pi * step / steps))
                group["lr"] = _LEARNING_RATE * decay * min(1.0, (step + 1) / _WARMUP_STEPS)
            rows = torch.randint(len(pixels), (_BATCH_SIZE,), generator=generator)
            features = network(augment(pixels[rows], generator))
            logits = network.logits(functional.dropout(features, _DROPOUT))
            loss = functional.cross_entropy(logits, labels[rows], label_smoothing=_LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return network.eval().requires_grad_(False)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Half the images (N, 1, 8, 8) shifted by up to a pixel, in fractions; all of them with a little noise."""
    shift = (2 * torch.rand(len(x), 2, generator=generator) - 1) * _SHIFT_PIXELS
    shift[::2] = 0
    size = x.shape[-1]
    transform = torch.eye(2, 3).expand(len(x), 2, 3).clone()
    transform[:, :, 2] = shift * (2 / size)
    grid = functional.affine_grid(transform, list(x.shape), align_corners=False)
    moved = functional.grid_sample(x + 1, grid, align_corners=False) - 1  # beyond the edge is background, -1
    return moved + _NOISE * torch.randn(x.shape, generator=generator)


def accuracy(network: DigitsNetwork, images: Tensor, labels: Tensor) -> float:
    """Share of ``images`` whose class the network names."""
    predicted = network.logits(network(images.float() / 127.5 - 1)).argmax(1)
    return float((predicted == labels).double().mean())


def training_digest(images: Tensor) -> str:
    """SHA-256 of the training images' bytes, kept in the file: held-out images must be unseen by the network."""
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


def main(
    output: Annotated[Path, typer.Option(help="Where to write the .safetensors file.")],
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 2_500,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights, the batches and the augmentation.")] = 0,
) -> None:
    """Train the digits features and write them."""
    torch.set_num_threads(1)  # sums are then taken in the same order wherever it runs
    source = digits_source()
    training, held_out = source.training_images(), source.held_out()
    assert training is not None
    assert held_out is not None
    (images, labels), (held_images, held_labels) = training, held_out
    assert isinstance(labels, Tensor)
    assert isinstance(held_labels, Tensor)
    started = time.perf_counter()
    network = train(images, labels, steps, seed)
    seconds = time.perf_counter() - started
    scores = {
        "train_accuracy": accuracy(network, images, labels),
        "held_out_accuracy": accuracy(network, held_images, held_labels),
    }
    state = NetworkState(FAMILY, network.config, network.state_dict())
    facts = {"seed": seed, "steps": steps, "training_digest": training_digest(images), **scores}
    save_network(output, state, facts)
    parameters = sum(p.numel() for p in network.parameters())
    typer.echo(f"{output}: {parameters} parameters, {output.stat().st_size} bytes, {seconds:.0f} s, {scores}")


if __name__ == "__main__":
    typer.run(main)
