"""Makes a network of features for small images: ``python -m freeflow_metrics.train_features --output PATH``.

Trained on the training split of a source alone, so that held-out images stay unseen by what scores them.
"""

import hashlib
import math
import time
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
import typer
from torch import Tensor
from torch.nn import functional

from freeflow_core.config.load import lay_settings
from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.interfaces import BuildContext, Source
from freeflow_core.network_file import save_network
from freeflow_core.plugin.manager import Manager
from freeflow_core.plugin.registry import Registry
from freeflow_core.types import NetworkState
from freeflow_metrics.features import FAMILY, SmallNetwork

LARGEST_SIDE = 64
_TINY_SIDE = 12
_BATCH_SIZE = 128
_LEARNING_RATE = 2e-3
_WARMUP_STEPS = 50
_WEIGHT_DECAY = 0.01
_DROPOUT = 0.2
_LABEL_SMOOTHING = 0.05
_NOISE = 0.1
SourceSettings: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the source; repeatable.")
]
_SHIFT = 0.125
"""Largest shift, as a share of the side, rounded down to whole pixels but one at least."""


def make_source(name: str, options: dict[str, Any]) -> Source:
    """A source through the registry, as any run gets it."""
    registry = Registry(Manager.load())

    def component(kind: str, name: str, options: dict[str, Any]) -> Any:
        found = registry.component(kind, name)
        return found.load_target().from_config(found.load_config_class().model_validate(options), context)

    context = BuildContext(device=torch.device("cpu"), seed=0, component=component)
    source: Source = component("source", name, options)
    return source


def make_network(image_shape: tuple[int, int, int], num_classes: int) -> SmallNetwork:
    """A network of a size that suits the images: 31,000 weights for 8x8, 108,000 for 28x28."""
    if max(image_shape[1:]) <= _TINY_SIDE:
        return SmallNetwork(image_shape, 48, num_classes, (24, 32, 48), (1, 2, 2))
    return SmallNetwork(image_shape, 64, num_classes, (32, 48, 64), (2, 2, 2))


def train(images: Tensor, labels: Tensor, num_classes: int, steps: int, seed: int) -> SmallNetwork:
    """A network trained on uint8 ``images`` (M, C, H, W) and ``labels`` (M,); a function of its arguments alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        channels, height, width = images.shape[1:]
        network = make_network((channels, height, width), num_classes)
        parameters = list(network.parameters())
        optimizer = torch.optim.AdamW(parameters, _LEARNING_RATE, weight_decay=_WEIGHT_DECAY, foreach=True)
        for step in range(steps):
            for group in optimizer.param_groups:
                decay = 0.5 * (1 + math.cos(math.pi * step / steps))
                group["lr"] = _LEARNING_RATE * decay * min(1.0, (step + 1) / _WARMUP_STEPS)
            rows = torch.randint(len(images), (_BATCH_SIZE,), generator=generator)
            features = network(augment(images[rows].float() / 127.5 - 1, generator))
            logits = network.logits(functional.dropout(features, _DROPOUT))
            loss = functional.cross_entropy(logits, labels[rows], label_smoothing=_LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return network.eval().requires_grad_(False)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Half the images (N, C, H, W) shifted a little, in fractions of pixels; all of them with a little noise."""
    sides = torch.tensor([x.shape[-1], x.shape[-2]])
    largest = (sides * _SHIFT).floor().clamp_min(1)
    shift = (2 * torch.rand(len(x), 2, generator=generator) - 1) * largest
    shift[::2] = 0
    transform = torch.eye(2, 3).expand(len(x), 2, 3).clone()
    transform[:, :, 2] = shift * (2 / sides)
    grid = functional.affine_grid(transform, list(x.shape), align_corners=False)
    moved = functional.grid_sample(x + 1, grid, align_corners=False) - 1  # beyond the edge is background, -1
    return moved + _NOISE * torch.randn(x.shape, generator=generator)


@torch.no_grad()
def accuracy(network: SmallNetwork, images: Tensor, labels: Tensor) -> float:
    """Share of ``images`` whose class the network names."""
    right = 0
    for part, expected in zip(torch.split(images, 1000), torch.split(labels, 1000), strict=True):
        right += int((network.logits(network(part.float() / 127.5 - 1)).argmax(1) == expected).sum())
    return right / len(images)


def training_digest(images: Tensor) -> str:
    """SHA-256 of the training images' bytes, kept in the file: held-out images must be unseen by the network."""
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


def main(
    output: Annotated[Path, typer.Option(help="Where to write the .safetensors file.")],
    source: Annotated[str, typer.Option(help="Name of a source with labelled images in memory.")] = "digits",
    settings: SourceSettings = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of 128 images.")] = 2_500,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights, the batches and the augmentation.")] = 0,
) -> None:
    """Train features for the images of a source and write them."""
    torch.set_num_threads(1)  # sums are then taken in the same order wherever it runs
    try:
        built = make_source(source, lay_settings({}, settings or ()))
        images, labels = _labelled(source, built.training_images())
        assert built.num_classes is not None
        started = time.perf_counter()
        network = train(images, labels, built.num_classes, steps, seed)
        seconds = time.perf_counter() - started
        scores = {"train_accuracy": accuracy(network, images, labels)}
        held_out = built.held_out()
        if held_out is not None:
            scores["held_out_accuracy"] = accuracy(network, *_labelled(source, held_out))
        state = NetworkState(FAMILY, network.config, network.state_dict())
        facts = {"source": source, "seed": seed, "steps": steps, "training_digest": training_digest(images), **scores}
        save_network(output, state, facts)
    except (FreeflowError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    parameters = sum(p.numel() for p in network.parameters())
    typer.echo(f"{output}: {parameters} parameters, {output.stat().st_size} bytes, {seconds:.0f} s, {scores}")


def _labelled(source: str, found: tuple[Tensor, Any] | None) -> tuple[Tensor, Tensor]:
    if found is None or not isinstance(found[1], Tensor) or found[0].dtype != torch.uint8:
        raise ConfigError(
            f"The source {source!r} has no labelled images in memory. Name one that has, such as digits, mnist or "
            "fashion-mnist."
        )
    if max(found[0].shape[2:]) > LARGEST_SIDE:
        raise ConfigError(
            f"The source {source!r} has images of {tuple(found[0].shape[1:])}; these networks are for sides up to "
            f"{LARGEST_SIDE}. Use features: inception."
        )
    return found[0], found[1]


if __name__ == "__main__":
    typer.run(main)
