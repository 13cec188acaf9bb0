"""Sources and codecs that ship with freeflow."""

from __future__ import annotations

from collections.abc import Iterable

from freeflow_core.plugin import Component, Preset, WeightFile, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_sources() -> Iterable[Component]:
    """The prior alone, data sets in files of their own format, and latents computed beforehand."""
    return [
        Component("prior", ".plain:PriorSource", ".config:PriorConfig"),
        Component("digits", ".plain:DigitsSource", ".config:DigitsConfig"),
        Component("mnist", ".mnist:MNISTSource", ".config:MNISTConfig"),
        Component("fashion-mnist", ".mnist:MNISTSource", ".config:FashionMNISTConfig"),
        Component("image-folder", ".image_folder:ImageFolderSource", ".config:ImageFolderConfig"),
        Component("npz", ".npz:NpzSource", ".config:NpzConfig"),
        Component("latents", ".latents:LatentsSource", ".config:LatentsConfig"),
    ]


@hookimpl
def freeflow_codecs() -> Iterable[Component]:
    """Pixels as states, Stable Diffusion's latents, and those of a small autoencoder of our own."""
    return [
        Component("pixels", ".plain:PixelCodec", ".config:PixelsConfig"),
        Component("sd-vae", ".sd_vae:SDVAECodec", ".config:SDVAEConfig"),
        Component("small-vae", ".small_vae:SmallVAECodec", ".config:SmallVAEConfig"),
    ]


@hookimpl
def freeflow_presets() -> Iterable[Preset]:
    """Teachers trained from these sources, and what becomes of students whose data are not the teacher's."""
    return [
        Preset(
            name="mnist",
            resource="freeflow_data:presets/pretrain-mnist.yaml",
            command="pretrain",
            summary="A SiT of MNIST's digits, 28x28 in patches of 4, trained from data by flow matching",
        ),
        Preset(
            name="mnist",
            resource="freeflow_data:presets/mnist.yaml",
            command="distill",
            summary="Data-free one-step student of the MNIST teacher that `freeflow pretrain --preset mnist` makes",
        ),
        Preset(
            name="mnist",
            resource="freeflow_data:presets/compare-mnist.yaml",
            command="compare",
            summary="Six objectives on the MNIST teacher with the same number of network passes",
        ),
        Preset(
            name="fashion-mnist",
            resource="freeflow_data:presets/pretrain-fashion-mnist.yaml",
            command="pretrain",
            summary="The same of Fashion-MNIST's clothes",
        ),
        Preset(
            name="mismatch",
            resource="freeflow_data:presets/compare-mismatch.yaml",
            command="compare",
            summary="Ever more augmented data for two data-based objectives, beside FreeFlow, on the digits teacher",
        ),
    ]


@hookimpl
def freeflow_weights() -> Iterable[WeightFile]:
    """The two published autoencoders that SiT, REPA, DiT and FreeFlow work with."""
    return [
        WeightFile(
            name="sd-vae-ft-mse",
            summary="Stable Diffusion's autoencoder, decoder finetuned for smooth reconstructions",
            filename="diffusion_pytorch_model.safetensors",
            repository="stabilityai/sd-vae-ft-mse",
            revision="31f26fdeee1355a5c34592e401dd41e45d25a493",
            size=334_643_276,
            sha256="a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
            licence="MIT",
            source="https://huggingface.co/stabilityai/sd-vae-ft-mse",
        ),
        WeightFile(
            name="sd-vae-ft-ema",
            summary="Stable Diffusion's autoencoder, decoder finetuned with the original loss",
            filename="diffusion_pytorch_model.safetensors",
            repository="stabilityai/sd-vae-ft-ema",
            licence="MIT",
            source="https://huggingface.co/stabilityai/sd-vae-ft-ema",
        ),
    ]
