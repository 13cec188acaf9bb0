"""Runs from these sources: what the engine does with augmented images, and with states that are encoded already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from freeflow_data.pixels import PixelCodec

from freeflow_core import api
from freeflow_core.config import RunConfig, load_run_config
from freeflow_core.errors import ConfigError
from freeflow_core.network_file import load_tensors
from freeflow_core.plugin import Manager, Registry

TINY: dict[str, Any] = {
    "name": "tiny",
    "student": {"name": "velocity-transformer", "width": 16, "depth": 1, "num_heads": 2, "patch_size": 4},
    "objective": "flow-matching",
    "source": {"name": "digits", "held_out": 597},
    "training": {"images": 64, "batch_size": 16},
    "evaluation": {"enabled": False},
    "runtime": {"device": "cpu", "threads": 1},
}


@pytest.fixture
def tiny(registry: Registry) -> Any:
    def make(*assignments: str, **overrides: Any) -> RunConfig:
        return load_run_config(registry, "pretrain", overrides={**TINY, **overrides}, assignments=assignments)

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "student.safetensors")[0]


def equal(first: Path, second: Path) -> bool:
    left, right = weights(first), weights(second)
    return all(torch.equal(left[name], right[name]) for name in left)


def test_augmented_training_resumes_bit_for_bit_and_differs_from_plain(
    tiny: Any, tmp_path: Path, manager: Manager
) -> None:
    augment = "source.augment=[flip, {name: rotation, strength: 1}]"
    whole = api.pretrain(tiny(augment), output=tmp_path / "whole", manager=manager).folder
    api.pretrain(tiny(augment, "training.stop_at_images=32"), output=tmp_path / "parts", manager=manager)
    parts = api.pretrain(tiny(augment), output=tmp_path / "parts", resume=True, manager=manager).folder
    plain = api.pretrain(tiny(), output=tmp_path / "plain", manager=manager).folder
    off = api.pretrain(tiny(augment, "source.augment_strength=0"), output=tmp_path / "off", manager=manager).folder
    assert equal(whole, parts)
    assert not equal(whole, plain)
    assert equal(off, plain)


def test_encoded_states_are_not_encoded_again(
    tiny: Any, tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.encode(source="digits", codec="pixels", output=tmp_path / "latents", device="cpu", manager=manager)

    def refuse(self: PixelCodec, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the codec is not needed")

    monkeypatch.setattr(PixelCodec, "encode", refuse)
    source = {"name": "latents", "path": str(tmp_path / "latents")}
    result = api.pretrain(tiny(source=source), output=tmp_path / "run", manager=manager)
    assert result.status == "finished"
    assert all(bool(value.isfinite().all()) for value in weights(result.folder).values())


def test_latents_of_another_codec_are_refused(tiny: Any, tmp_path: Path, manager: Manager) -> None:
    api.encode(source="digits", codec="pixels", output=tmp_path / "latents", device="cpu", manager=manager)
    source = {"name": "latents", "path": str(tmp_path / "latents")}
    with pytest.raises(ConfigError, match=r"made by the codec 'pixels', but .* 'sd-vae'"):
        api.pretrain(tiny(source=source, codec="sd-vae"), output=tmp_path / "run", manager=manager)
    assert not (tmp_path / "run").exists()
