"""Hooks of the transformers plugin."""

from collections.abc import Iterable

from freeflow_core.plugin import Component, Preset, WeightFile, hookimpl
from freeflow_transformers.released.families import PUBLISHED

freeflow_api = "1"


@hookimpl
def freeflow_teachers() -> Iterable[Component]:
    """The shipped teachers of digits, and teachers pretrained here or published."""
    return [
        Component("digits", ".teachers:TransformerTeacher", ".config:DigitsTeacherConfig", licence="Apache-2.0"),
        Component("mnist", ".teachers:TransformerTeacher", ".config:MNISTTeacherConfig", licence="Apache-2.0"),
        Component("sit", ".teachers:TransformerTeacher", ".config:SiTTeacherConfig"),
        Component("sit-repa", ".teachers:TransformerTeacher", ".config:SiTRepaTeacherConfig"),
        Component("dit", ".teachers:NoiseTeacher", ".config:DiTTeacherConfig"),
    ]


@hookimpl
def freeflow_students() -> Iterable[Component]:
    """The flow map, and the velocity field that becomes a teacher."""
    return [
        Component("transformer", ".students:FlowMapTransformer", ".config:FlowMapTransformerConfig"),
        Component("velocity-transformer", ".students:VelocityTransformer", ".config:VelocityTransformerConfig"),
        Component("policy-transformer", ".policy:PolicyTransformer", ".config:PolicyTransformerConfig"),
        Component("freeflow", ".students:FlowMapTransformer", ".config:FreeFlowStudentConfig"),
        Component("freeflow-xl-2-256", ".students:FlowMapTransformer", ".config:FreeFlow256Config"),
        Component("freeflow-sit-xl-2-256", ".students:FlowMapTransformer", ".config:FreeFlowSiT256Config"),
        Component("freeflow-xl-2-512", ".students:FlowMapTransformer", ".config:FreeFlow512Config"),
    ]


@hookimpl
def freeflow_weights() -> Iterable[WeightFile]:
    """The published checkpoints of the teachers and students above."""
    return PUBLISHED


@hookimpl
def freeflow_presets() -> Iterable[Preset]:
    """Complete runs: the handwritten digits, and the paper's recipes."""
    return [
        _distill("digits", "Data-free one-step student of the shipped digits teacher, unguided", teacher="digits"),
        _distill("digits-guided", "The same with a guided teacher and the guidance weight as an input"),
        _distill("mnist", "Data-free one-step student of the shipped latent teacher of MNIST digits", teacher="mnist"),
        _distill("mnist-guided", "The same teacher guided inside an interval of times, as the paper's are"),
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
            "mnist",
            "freeflow_transformers:presets/compare-mnist.yaml",
            command="compare",
            summary="Every objective on the shipped latent teacher of MNIST digits",
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
