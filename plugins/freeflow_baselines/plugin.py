"""Published objectives, one file each."""

from __future__ import annotations

from collections.abc import Iterable

from freeflow_core.plugin import Component, hookimpl


@hookimpl
def freeflow_objectives() -> Iterable[Component]:
    """Flow matching, which trains a teacher from data."""
    return [
        Component(
            name="flow-matching",
            target="freeflow_baselines.flow_matching:FlowMatching",
            config="freeflow_baselines.config:FlowMatchingConfig",
            summary="Instantaneous velocity from data: trains a teacher.",
            source="Lipman et al. 2022, arXiv 2210.02747; Ma et al. 2024 (SiT), arXiv 2401.08740",
        ),
    ]
