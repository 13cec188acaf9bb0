from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from freeflow_transformers.architecture import TransformerConfig
from freeflow_transformers.network import DiffusionTransformer
from freeflow_transformers.released.detection import released_name
from freeflow_transformers.teachers import TransformerTeacher

from freeflow_core.interfaces import BuildContext, Source, Teacher

MakeNetwork = Callable[..., DiffusionTransformer]


@pytest.fixture
def make_network() -> MakeNetwork:
    """Small networks; ``random=True`` fills every parameter, so that no layer is still zero."""

    def make(*, random: bool = True, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
        values = {
            "sample_shape": (2, 4, 6),
            "patch_size": 2,
            "width": 24,
            "depth": 2,
            "num_heads": 3,
            "num_classes": 5,
            **options,
        }
        generator = torch.Generator().manual_seed(seed)
        network = DiffusionTransformer(TransformerConfig(**values), generator).to(dtype)
        if random:
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        return network

    return make


@pytest.fixture
def teacher(make_network: MakeNetwork) -> TransformerTeacher:
    return TransformerTeacher(make_network())


@pytest.fixture
def make_context() -> Callable[..., BuildContext]:
    def make(
        teacher: Teacher | None = None,
        source: Source | None = None,
        seed: int = 0,
        device: str = "cpu",
        weights: Callable[[str], Path] | None = None,
    ) -> BuildContext:
        def component(kind: str, name: str, options: dict[str, Any]) -> Any:
            raise AssertionError(f"nothing here builds another component, asked for {kind} {name}")

        def no_weights(name: str) -> Path:
            raise AssertionError(f"nothing here fetches weights, asked for {name}")

        return BuildContext(torch.device(device), seed, component, teacher, source, weights=weights or no_weights)

    return make


@pytest.fixture
def states() -> Callable[..., torch.Tensor]:
    def make(num: int, shape: tuple[int, ...] = (2, 4, 6), dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(num, *shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)

    return make


FAMILIES = {
    "sit": {"learn_sigma": True},
    "sit-512": {},
    "sit-repa": {"projectors": True},
    "dit": {"learn_sigma": True},
    "freeflow": {"learn_sigma": True, "jump": True, "guidance": True},
    "freeflow-512": {"jump": True, "guidance": True},
}
"""What tells their files apart; a sit file and a dit file differ in nothing."""


@pytest.fixture
def released_tensors(make_network: MakeNetwork) -> Callable[..., dict[str, torch.Tensor]]:
    """Tensors of a tiny checkpoint as a family publishes it."""

    def make(family: str, **options: Any) -> dict[str, torch.Tensor]:
        values = {"sample_shape": (4, 8, 8), "num_classes": 10, **FAMILIES[family], **options}
        projectors = values.pop("projectors", False)
        network = make_network(**values)
        student = network.config.jump
        tensors = {released_name(name, student=student): t for name, t in network.state_dict().items()}
        if projectors:
            tensors |= {f"projectors.0.{i}.weight": torch.zeros(8, 24) for i in (0, 2, 4)}
        return tensors

    return make


@pytest.fixture
def write_checkpoint(tmp_path: Path, released_tensors: Any) -> Callable[..., Path]:
    """Write one under a name that says nothing."""

    def write(family: str, name: str = "weights.pt", **options: Any) -> Path:
        torch.save(released_tensors(family, **options), tmp_path / name)
        return tmp_path / name

    return write
