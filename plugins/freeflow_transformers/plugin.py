"""Hooks of the transformers plugin."""

from __future__ import annotations

from collections.abc import Iterable

from freeflow_core.plugin import Component, Preset, WeightFile, hookimpl
from freeflow_transformers.released.families import PUBLISHED

freeflow_api = "1"
_SIT, _FREEFLOW = "Ma et al. 2024, arXiv 2401.08740", "Tong et al. 2025, arXiv 2511.19428"


@hookimpl
def freeflow_teachers() -> Iterable[Component]:
    """The shipped teachers of digits, and teachers pretrained here or published."""
    return [
        Component(
            name="digits",
            target="freeflow_transformers.teachers:TransformerTeacher",
            config="freeflow_transformers.config:DigitsTeacherConfig",
            summary="Handwritten digits, 8x8, ten classes: a small transformer that ships with the package",
            source=f"{_SIT}; data: UCI optical digits",
        ),
        Component(
            name="mnist",
            target="freeflow_transformers.teachers:TransformerTeacher",
            config="freeflow_transformers.config:MNISTTeacherConfig",
            summary="Handwritten digits, 28x28, ten classes: a small latent transformer that ships with the package",
            source=f"{_SIT}; data: MNIST",
        ),
        Component(
            name="sit",
            target="freeflow_transformers.teachers:TransformerTeacher",
            config="freeflow_transformers.config:SiTTeacherConfig",
            summary="Flow transformer (SiT): published weights, or trained with `freeflow pretrain`",
            source=_SIT,
        ),
        Component(
            name="sit-repa",
            target="freeflow_transformers.teachers:TransformerTeacher",
            config="freeflow_transformers.config:SiTRepaTeacherConfig",
            summary="SiT trained with representation alignment (REPA): published weights, XL/2 at 256 pixels or 512",
            source="Yu et al. 2025, arXiv 2410.06940",
        ),
        Component(
            name="dit",
            target="freeflow_transformers.dit:NoiseTeacher",
            config="freeflow_transformers.config:DiTTeacherConfig",
            summary="Noise-predicting diffusion transformer (DiT) as a velocity: published weights, XL/2, 256 or 512",
            source="Peebles & Xie 2022, arXiv 2212.09748",
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
            source=_FREEFLOW,
        ),
        Component(
            name="velocity-transformer",
            target="freeflow_transformers.students:VelocityTransformer",
            config="freeflow_transformers.config:VelocityTransformerConfig",
            summary="Plain velocity transformer, to pretrain a teacher from data",
            source=_SIT,
        ),
        Component(
            name="policy-transformer",
            target="freeflow_transformers.policy:PolicyTransformer",
            config="freeflow_transformers.config:PolicyTransformerConfig",
            summary="Transformer that emits a policy, a velocity field in closed form; starts from its teacher",
            source="pi-Flow: Chen et al. 2025, arXiv 2510.14974",
        ),
        Component(
            name="freeflow",
            target="freeflow_transformers.students:FlowMapTransformer",
            config="freeflow_transformers.config:FreeFlowStudentConfig",
            summary="One-step student from a file in the published FreeFlow format",
            source=_FREEFLOW,
        ),
        *(
            Component(
                name=name,
                target="freeflow_transformers.students:FlowMapTransformer",
                config=f"freeflow_transformers.config:{config}",
                summary=f"The published one-step student{of}",
                source=_FREEFLOW,
            )
            for name, config, of in (
                ("freeflow-xl-2-256", "FreeFlow256Config", " of sit-repa, XL/2 at 256 pixels"),
                ("freeflow-sit-xl-2-256", "FreeFlowSiT256Config", " of sit, XL/2 at 256 pixels"),
                ("freeflow-xl-2-512", "FreeFlow512Config", ", XL/2 at 512 pixels"),
            )
        ),
    ]


@hookimpl
def freeflow_weights() -> Iterable[WeightFile]:
    """The published checkpoints of the teachers and students above."""
    return PUBLISHED


@hookimpl
def freeflow_presets() -> Iterable[Preset]:
    """Complete runs: the handwritten digits, and the paper's recipes."""
    return [
        _distill("digits", "Data-free one-step student of the shipped digits teacher, unguided"),
        _distill("digits-guided", "The same with a guided teacher and the guidance weight as an input"),
        _distill(
            "mnist-latent",
            "Data-free one-step student of the shipped latent teacher of MNIST's digits",
            teacher="mnist",
        ),
        _distill(
            "sit-repa-xl2-256", "SiT-XL/2+REPA at 256 pixels to one step; for GPUs", _paper(256, 1.45, 1.37), "sit-repa"
        ),
        _distill("sit-xl2-256", "SiT-XL/2 at 256 pixels to one step; for GPUs", _paper(256, 1.69, 2.06), "sit"),
        _distill("sit-repa-xl2-512", "SiT-XL/2+REPA at 512 pixels to one step; for GPUs", _paper(512, 1.49, 1.37)),
        _distill(
            "dit-xl2-256",
            "DiT-XL/2 at 256 pixels to one step, the student from random weights; for GPUs",
            scores="None known: the paper does not distil this teacher.",
            teacher="dit",
        ),
        _distill(
            "dit-b2-ablation",
            "DiT-B/2 at 256 pixels, the setting of the paper's ablations; needs a teacher of your own",
            scores="None promised: the paper's teacher is not identified. The paper's own: FID 5.58.",
        ),
        Preset(
            "digits",
            "freeflow_transformers:presets/pretrain-digits.yaml",
            command="pretrain",
            summary="The digits teacher, trained from data by flow matching",
        ),
        Preset(
            "mnist-latent",
            "freeflow_transformers:presets/pretrain-mnist-latent.yaml",
            command="pretrain",
            summary="The mnist teacher, trained on latents of its 60,000 digits by flow matching",
        ),
    ]


def _distill(name: str, summary: str, scores: str = "", teacher: str = "") -> Preset:
    resource = f"freeflow_transformers:presets/{name}.yaml"
    return Preset(name, resource, command="distill", summary=summary, scores=scores, teacher=teacher)


def _paper(resolution: int, student: float, teacher: float) -> str:
    fid = f"FID {student} in one step on ImageNet {resolution} (teacher {teacher})"
    return f"The paper: {fid}. Not reproduced here yet."
