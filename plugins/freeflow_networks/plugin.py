"""What this plugin offers."""

from __future__ import annotations

from collections.abc import Iterable

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_teachers() -> Iterable[Component]:
    """Networks of any origin, read with the convention that their options state."""
    return [
        Component(
            name="callable",
            target="freeflow_networks.teacher:OwnNetworkTeacher",
            config="freeflow_networks.config:CallableTeacherConfig",
            summary="Any importable function or module, with its convention as options; needs --trust",
        ),
        Component(
            name="torch-file",
            target="freeflow_networks.teacher:OwnNetworkTeacher",
            config="freeflow_networks.config:TorchFileTeacherConfig",
            summary="A torch.export (.pt2) or TorchScript file, with its convention as options; needs --trust",
        ),
        Component(
            name="diffusers-transformer",
            target="freeflow_networks.diffusers_teacher:DiffusersTeacher",
            config="freeflow_networks.config:DiffusersTeacherConfig",
            summary="A flow-matching transformer of diffusers (SD3, FLUX) with prompts given as embeddings",
            source="Esser et al. 2024, arXiv 2403.03206",
        ),
    ]
