from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from freeflow_transformers.architecture import TransformerConfig
from freeflow_transformers.network import DiffusionTransformer
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
    def make(teacher: Teacher | None = None, source: Source | None = None, seed: int = 0) -> BuildContext:
        def component(kind: str, name: str, options: dict[str, Any]) -> Any:
            raise AssertionError(f"nothing here builds another component, asked for {kind} {name}")

        return BuildContext(torch.device("cpu"), seed, component, teacher, source)

    return make


@pytest.fixture
def states() -> Callable[..., torch.Tensor]:
    def make(num: int, shape: tuple[int, ...] = (2, 4, 6), dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(num, *shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)

    return make
