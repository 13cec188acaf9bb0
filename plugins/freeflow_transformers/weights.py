"""A diffusion transformer as data, and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import Teacher
from freeflow_core.network_file import check_tensors
from freeflow_core.types import LoadReport, NetworkState
from freeflow_transformers.architecture import FAMILY, TransformerConfig
from freeflow_transformers.network import DiffusionTransformer, allocate

_STUDENTS_OWN = ("jump", "guidance")
"""What a student may have and its teacher lacks."""


def transformer_state(network: DiffusionTransformer) -> NetworkState:
    """The network as data; the tensors share memory with it."""
    return NetworkState(FAMILY, network.config.model_dump(mode="json"), network.state_dict())


def transformer_from_state(state: NetworkState, what: str) -> DiffusionTransformer:
    """The network that ``transformer_state`` described, in the precision of its tensors, with memory of its own.

    Args:
        state: of the family ``"diffusion-transformer"``.
        what: names the origin in errors, e.g. ``"teacher checkpoint digits.safetensors"``.

    Raises ``CheckpointError``: another family, a configuration that is none, or tensors that do not fit it.
    """
    if state.family != FAMILY:
        raise CheckpointError(
            f"The {what} holds a network of the family {state.family!r}; expected {FAMILY!r}. Choose the component "
            "that wrote it, or another file."
        )
    architecture = TransformerConfig.from_stored(dict(state.config))
    check_tensors(DiffusionTransformer(architecture, device="meta").state_dict(), state.tensors, what)
    return filled_network(architecture, state.tensors, state.tensors["x_embedder.proj.weight"].dtype)


def filled_network(
    architecture: TransformerConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> DiffusionTransformer:
    """A network with these weights in memory of its own, on the CPU; without memory for tensors on the meta device.

    No starting weights are drawn first, which takes longer than reading a large checkpoint. ``tensors`` fit it.
    """
    network = DiffusionTransformer(architecture, device="meta").to(dtype)
    if other := [name for name, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise CheckpointError(
            f"The weights {other[0]} are {tensors[other[0]].dtype} ({len(other)} of {len(tensors)} tensors are not "
            "floating-point): quantised weights cannot be used. Choose a file in float32, float16 or bfloat16."
        )
    if not any(tensor.is_meta for tensor in tensors.values()):
        allocate(network, "cpu")
        network.load_state_dict(dict(tensors))
    return network


def teacher_architecture(teacher: Teacher | None) -> TransformerConfig | None:
    """The teacher's architecture when its network is a diffusion transformer, else None."""
    state = None if teacher is None else teacher.network_state()
    if state is None or state.family != FAMILY:
        return None
    return TransformerConfig.from_stored(dict(state.config))


def take_weights(network: DiffusionTransformer, teacher: Teacher) -> LoadReport:
    """Copy the teacher's tensors into ``network`` by name.

    Raises ``ConfigError``: the teacher's network is of another family, or differs from ``network`` in its architecture.
    """
    own, state = network.state_dict(), teacher.network_state()
    if state is None:
        return LoadReport(new=tuple(own))
    remedy = "start from fresh weights (--set student.initialise=random)"
    if state.family != FAMILY:
        raise ConfigError(
            f"The student is a {FAMILY}, the teacher's network a {state.family}: none of its weights fit. Choose a "
            f"student of that family, or {remedy}."
        )
    theirs = TransformerConfig.from_stored(dict(state.config))
    refuse_noise_prediction(theirs)
    shared = {name: getattr(theirs, name) for name in TransformerConfig.model_fields if name not in _STUDENTS_OWN}
    if problems := differences(network.config, shared):
        raise ConfigError(
            f"The student cannot start from this teacher, because it has {'; '.join(problems)}. Leave these "
            f"options out, so that they follow the teacher, or {remedy}."
        )
    taken = {name: tensor for name, tensor in state.tensors.items() if name in own}
    network.load_state_dict(taken, strict=False)
    return LoadReport(
        taken=tuple(taken),
        new=tuple(name for name in own if name not in taken),
        left=tuple(name for name in state.tensors if name not in own),
    )


def differences(found: TransformerConfig, expected: Mapping[str, Any]) -> list[str]:
    """``"depth 4, not 6"`` for each value that is not as expected."""
    own = {name: getattr(found, name) for name in expected}
    return [f"{name} {own[name]}, not {value}" for name, value in expected.items() if own[name] != value]


def refuse_noise_prediction(teacher: TransformerConfig) -> None:
    """Raise :class:`ConfigError` for a teacher that predicts the noise: its weights are no start for a student.

    On the linear path its velocity is (e - x_t) / (1 - t), and a student is asked at t = 1.
    """
    if teacher.prediction == "noise":
        raise ConfigError(
            "The student cannot start from this teacher, because it predicts the noise: at t = 1, where the student "
            "starts, turning that into a velocity amplifies every error 158 times. Start from fresh weights (--set "
            "student.initialise=random), or fine-tune the teacher to predict a velocity first."
        )
