"""Hooks of the transformers plugin."""

from __future__ import annotations

from collections.abc import Iterable

from freeflow_core.plugin import Component, Preset, hookimpl


@hookimpl
def freeflow_teachers() -> Iterable[Component]:
    """The shipped digits teacher, and teachers pretrained here."""
    return [
        Component(
            name="digits",
            target="freeflow_transformers.teachers:TransformerTeacher",
            config="freeflow_transformers.config:DigitsTeacherConfig",
            summary="Handwritten digits, 8x8, ten classes: a small transformer that ships with the package",
            source="Ma et al. 2024, arXiv 2401.08740; data: UCI optical digits",
        ),
        Component(
            name="sit",
            target="freeflow_transformers.teachers:TransformerTeacher",
            config="freeflow_transformers.config:SiTTeacherConfig",
            summary="A flow transformer (SiT) trained with `freeflow pretrain`",
            source="Ma et al. 2024, arXiv 2401.08740",
        ),
    ]


@hookimpl
def freeflow_students() -> Iterable[Component]:
    """The flow map, and the velocity field that becomes a teacher."""
    return [
        Component(
            name="transformer",
            target="freeflow_transformers.students:FlowMapTransformer",
            config="freeflow_transformers.config:FlowMapTransformerConfig",
            summary="One-step transformer with duration and guidance inputs; starts from a transformer teacher",
            source="Tong et al. 2025, arXiv 2511.19428",
        ),
        Component(
            name="velocity-transformer",
            target="freeflow_transformers.students:VelocityTransformer",
            config="freeflow_transformers.config:VelocityTransformerConfig",
            summary="Plain velocity transformer, to pretrain a teacher from data",
            source="Ma et al. 2024, arXiv 2401.08740",
        ),
    ]


@hookimpl
def freeflow_presets() -> Iterable[Preset]:
    """Complete runs on the handwritten digits."""
    return [
        Preset(
            name="digits",
            resource="freeflow_transformers:presets/digits.yaml",
            command="distill",
            summary="Data-free one-step student of the shipped digits teacher, unguided",
        ),
        Preset(
            name="digits-guided",
            resource="freeflow_transformers:presets/digits-guided.yaml",
            command="distill",
            summary="The same with a guided teacher and the guidance weight as an input",
        ),
        Preset(
            name="digits",
            resource="freeflow_transformers:presets/pretrain-digits.yaml",
            command="pretrain",
            summary="The digits teacher, trained from data by flow matching",
        ),
    ]
