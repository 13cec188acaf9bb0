"""Networks in the published formats, so that the authors' own programs can read them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.files import replacing
from freeflow_core.network_file import save_tensors
from freeflow_core.types import NetworkState
from freeflow_transformers.architecture import FAMILY, TransformerConfig
from freeflow_transformers.released.detection import released_name
from freeflow_transformers.released.families import FAMILIES

RELEASED_METADATA = "released"
"""Key of the metadata of an exported safetensors file: its family and heads, which tensors do not tell."""


def released_state_dict(state: NetworkState) -> dict[str, Tensor]:
    """The tensors under their published names, unaltered; they share memory with ``state``.

    A flow map becomes a FreeFlow student, a velocity network a SiT or REPA checkpoint. The convention, which the
    format does not hold, stays what it is: see :func:`released_family`. Raises ``ConfigError`` for other networks.
    """
    architecture = _exportable(state)
    return {released_name(name, student=architecture.jump): tensor for name, tensor in state.tensors.items()}


def released_family(state: NetworkState) -> str:
    """The family, ``sit`` or ``sit-repa``, whose convention the network has; programs must be told it.

    Raises ``ConfigError`` for a network that no published format can hold.
    """
    architecture = _exportable(state)
    for family in FAMILIES.values():  # a REPA file has C output channels
        same = (family.time_direction, family.sign) == (architecture.time_direction, architecture.sign)
        if same and family.prediction == "velocity" and family.learn_sigma in (None, architecture.learn_sigma):
            return family.name
    raise ConfigError(
        f"No published family has time {architecture.time_direction}, velocity {architecture.sign} and "
        f"{architecture.out_channels} output channels for {architecture.channels}; sit has data-at-1 and "
        "data-minus-noise, sit-repa data-at-0, noise-minus-data and no more output channels than states."
    )


def export_released(state: NetworkState, path: Path) -> str:
    """Write ``path``, ``.safetensors`` or ``.pt`` by its suffix, atomically; what was written, in words.

    Raises:
        ConfigError: another suffix, or a network that the format cannot hold.
        CheckpointError: the file cannot be written; nothing half-written is left behind.
    """
    if path.suffix not in (".safetensors", ".pt"):
        raise ConfigError(f"Cannot export to {path}: expected a name that ends in .safetensors or .pt.")
    architecture, family = _exportable(state), released_family(state)
    tensors = {name: t.detach().cpu().contiguous() for name, t in released_state_dict(state).items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_tensors(path, tensors, {RELEASED_METADATA: {"family": family, "num_heads": architecture.num_heads}})
        else:  # a plain state dict, as load_state_dict of the authors' programs takes it
            with replacing(path) as temporary:
                torch.save(tensors, temporary)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} cannot be written: {error}. Free some space or choose another folder."
        ) from error
    kind = "FreeFlow student" if architecture.jump else "velocity network"
    return f"{kind} with the convention of {family}, {len(tensors)} tensors"


def _exportable(state: NetworkState) -> TransformerConfig:
    if state.family != FAMILY:
        raise ConfigError(f"Only a {FAMILY} can be exported to the published formats, not a {state.family}.")
    architecture = TransformerConfig.from_stored(dict(state.config))
    _, height, width = architecture.sample_shape
    problems = {
        "it takes a duration but no guidance weight (train it with student.guidance=true)": (
            architecture.jump != architecture.guidance
        ),
        "it has no classes": architecture.num_classes == 0,
        "it has no null class": architecture.num_classes > 0 and not architecture.null_class,
        f"its states of {height} x {width} are not square": height != width,
        "it predicts the noise": architecture.prediction == "noise",
    }
    found = [text for text, applies in problems.items() if applies]
    if found:
        raise ConfigError(f"The network cannot be exported to the published formats: {'; '.join(found)}.")
    return architecture
