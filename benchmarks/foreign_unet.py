"""From a file with somebody's network to its one-step student, on MNIST: minutes, and distances of three seeds.

A U-Net with ReLU and BatchNorm, about a million weights, is trained here by a plain loop that knows nothing of
freeflow (time 1 is data), and saved as a state dict. Then ``--student wrapped`` distils it, data-free, once a seed.

python benchmarks/foreign_unet.py --data data/mnist --output foreign-unet --seeds 3

The same command again goes on where it was stopped, in the middle of the network's training or of a run.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

ROWS = {
    "data": "training images",
    "teacher": "teacher, many steps",
    "teacher_floor": "teacher, many steps, other noise",
    "teacher_1_step": "teacher, one step",
    "student": "student, one step",
    "student_jump": "student to t = 0.5, then the teacher",
}
SCORES = ("fd_data", "fd_teacher", "accuracy", "spread_ratio", "fidelity_mse")
_SAVE_EVERY = 200


class Block(nn.Module):
    """Two convolutions, each normalised over the batch; time and label shift the first."""

    def __init__(self, channels: int, out: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(out), nn.BatchNorm2d(out)])
        self.shift = nn.Linear(width, out)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = torch.relu(self.norms[0](self.first(x)) + self.shift(embedding)[:, :, None, None])
        return torch.relu(self.norms[1](self.second(x)))


class UNet(nn.Module):
    """data - noise (N, 1, 28, 28) at x = t data + (1 - t) noise, of a label; a million weights."""

    def __init__(self, one: int = 16, two: int = 48, four: int = 256, width: int = 128) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width))
        self.label_embed = nn.Embedding(10, width)
        self.down = nn.ModuleList([Block(1, one, width), Block(one, two, width)])
        self.middle = Block(two, four, width)
        self.up = nn.ModuleList([Block(four + two, two, width), Block(two + one, one, width)])
        self.out = nn.Conv2d(one, 1, 1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        angles = t[:, None] * torch.arange(1, 17, device=t.device)
        embedding = self.time_embed(torch.cat([angles.sin(), angles.cos()], 1)) + self.label_embed(label)
        large = self.down[0](x, embedding)
        small = self.down[1](max_pool2d(large, 2), embedding)
        x = interpolate(self.middle(max_pool2d(small, 2), embedding), scale_factor=2)
        x = interpolate(self.up[0](torch.cat([small, x], 1), embedding), scale_factor=2)
        return self.out(self.up[1](torch.cat([large, x], 1), embedding))


def train_network(folder: Path, data: Path, steps: int, batch: int = 64) -> tuple[Path, float]:
    """The averaged weights of ``steps`` steps in ``unet.pt``, and CPU minutes; goes on from ``unet-training.pt``."""
    done, partial = folder / "unet.pt", folder / "unet-training.pt"
    if done.is_file():
        return done, float(json.loads((folder / "unet.json").read_text("utf-8"))["cpu_minutes"])
    images, labels = _mnist(data)
    torch.manual_seed(0)
    network = UNet()
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    parts: dict[str, Any] = {"network": network, "average": average, "optimizer": optimizer, "schedule": schedule}
    first, minutes = 0, 0.0
    if partial.is_file():
        state = torch.load(partial, weights_only=True)
        first, minutes = state["step"], state["cpu_minutes"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    began = time.process_time()
    for step in range(first, steps):
        draws = torch.Generator().manual_seed(step)
        rows = torch.randint(len(images), (batch,), generator=draws)
        x, n = images[rows].float() / 127.5 - 1, torch.randn(batch, 1, 28, 28, generator=draws)
        t = torch.rand(batch, generator=draws)
        mixed = t[:, None, None, None] * x + (1 - t)[:, None, None, None] * n
        loss = (network(mixed, t, labels[rows]) - (x - n)).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        keep = min(0.999, step / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - keep)
        for own, now in zip(average.buffers(), network.buffers(), strict=True):
            own.copy_(now)
        if (step + 1) % _SAVE_EVERY == 0 or step + 1 == steps:
            spent = minutes + (time.process_time() - began) / 60
            print(f"network: {step + 1:,} of {steps:,} steps, loss {loss.item():.3f}, {spent:.1f} CPU min", flush=True)
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save(state | {"step": step + 1, "cpu_minutes": spent}, partial.with_suffix(".new"))
            partial.with_suffix(".new").replace(partial)
    minutes += (time.process_time() - began) / 60
    (folder / "unet.json").write_text(json.dumps({"cpu_minutes": minutes, "steps": steps}), "utf-8")
    torch.save(average.state_dict(), done)
    return done, minutes


def distil(folder: Path, weights: Path, data: Path, seed: int, images: int, settings: list[str]) -> dict[str, Any]:
    """Scores and CPU minutes of one seed, by the command's own configuration; kept in ``results.jsonl``."""
    from freeflow_core import api
    from freeflow_core.plugin import Manager

    kept = folder / "results.jsonl"
    for line in kept.read_text("utf-8").splitlines() if kept.is_file() else ():
        if (found := json.loads(line))["seed"] == seed:
            return dict(found)
    manager, run = Manager.load(trust=True), folder / f"seed-{seed}"
    teacher = {
        "name": "callable",
        "network": f"{Path(__file__).resolve()}:UNet",
        "weights": str(weights.resolve()),
        "sample_shape": [1, 28, 28],
        "condition": "labels",
        "num_classes": 10,
        "time_direction": "data-at-1",
    }
    scores = [{"name": "frechet", "features": "mnist"}, {"name": "class-accuracy", "features": "mnist"}]
    config = api.resolve_config(
        "distill",
        preset="any-teacher",
        overrides={
            "name": f"foreign-unet-{seed}",
            "seed": seed,
            "teacher": teacher,
            "student": "wrapped",
            "reference": {"name": "mnist", "path": str(data)},
            "objective": {"name": "freeflow", "correction_warmup_images": images // 4},
            "training": {"images": images, "optimizer": {"warmup_images": images // 16}},
            "checkpointing": {"every_images": 1920},
            "evaluation": {"num_samples": 1000, "reference_steps": 20, "evaluators": [*scores, "spread", "fidelity"]},
            "trackers": [],
        },
        settings=settings,
        manager=manager,
    )
    began = time.process_time()
    result = api.distill(config, output=run, resume=run.is_dir(), manager=manager)
    line = {"seed": seed, "cpu_minutes": (time.process_time() - began) / 60, "scores": result.scores}
    with kept.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return line


def table(results: list[dict[str, Any]], minutes: float) -> str:
    """Markdown: a mean over the seeds with least and greatest, a row for each way of sampling."""
    names = [name for name in SCORES if any(name in row for r in results for row in r["scores"].values())]
    lines = [f"| {len(results)} seeds | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for key, title in ROWS.items():
        cells = []
        for name in names:
            values = [r["scores"][key][name] for r in results if name in r["scores"].get(key, {})]
            spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3g}{spread}" if values else "-")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    spent = statistics.mean(r["cpu_minutes"] for r in results)
    lines.append(f"\nThe network took {minutes:.1f} CPU minutes; from its file to a scored student {spent:.1f}.")
    return "\n".join(lines)


def _mnist(folder: Path) -> tuple[Tensor, Tensor]:
    """All training images (60000, 1, 28, 28) uint8 and labels, of the idx files: bytes after a header."""

    def read(name: str, header: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        file = folder / name
        content = file.read_bytes() if file.is_file() else gzip.decompress((folder / f"{name}.gz").read_bytes())
        return np.frombuffer(content, np.uint8, offset=header).copy()

    images = read("train-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28)
    return torch.from_numpy(images), torch.from_numpy(read("train-labels-idx1-ubyte", 8).astype(np.int64))


def main() -> None:
    """Train the network, distil it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/mnist"), help="MNIST's idx files")
    parser.add_argument("--output", type=Path, default=Path("foreign-unet"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teacher-steps", type=int, default=1600)
    parser.add_argument("--images", type=int, default=9600, help="noises that each student is trained on")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="of the runs")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    weights, minutes = train_network(arguments.output, arguments.data, arguments.teacher_steps)
    results = [
        distil(arguments.output, weights, arguments.data, seed, arguments.images, arguments.settings)
        for seed in range(arguments.seeds)
    ]
    if results:
        print(table(results, minutes))


if __name__ == "__main__":
    main()
