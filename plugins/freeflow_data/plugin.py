"""Sources and codecs that ship with freeflow."""

from __future__ import annotations

from collections.abc import Iterable

from freeflow_core.plugin import Component, Preset, WeightFile, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_sources() -> Iterable[Component]:
    """The prior alone, data sets in files of their own format, and latents computed beforehand."""
    return [
        Component(
            name="prior",
            target="freeflow_data.prior:PriorSource",
            config="freeflow_data.config:PriorConfig",
            summary="No data at all: training starts from noise and conditions.",
        ),
        Component(
            name="digits",
            target="freeflow_data.digits:DigitsSource",
            config="freeflow_data.config:DigitsConfig",
            summary="1797 handwritten digits, 8x8 grey, 10 classes, stratified held-out split; no download.",
            source="scikit-learn load_digits; UCI 80, Alpaydin and Kaynak 1998",
        ),
        Component(
            name="mnist",
            target="freeflow_data.mnist:MNISTSource",
            config="freeflow_data.config:MNISTConfig",
            summary="MNIST's idx files from a folder: 60000 digits to train on, 10000 held out, 28x28 grey.",
            source="LeCun, Bottou, Bengio and Haffner 1998",
        ),
        Component(
            name="fashion-mnist",
            target="freeflow_data.mnist:MNISTSource",
            config="freeflow_data.config:FashionMNISTConfig",
            summary="Fashion-MNIST's idx files from a folder: ten kinds of clothes, 28x28 grey.",
            source="Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747",
        ),
        Component(
            name="image-folder",
            target="freeflow_data.image_folder:ImageFolderSource",
            config="freeflow_data.config:ImageFolderConfig",
            summary="PNG, JPEG, WebP and BMP files; classes from sub-folders, a csv or a json file, or none.",
            source="centre crop: Dhariwal and Nichol 2021, arXiv 2105.05233",
        ),
        Component(
            name="npz",
            target="freeflow_data.npz:NpzSource",
            config="freeflow_data.config:NpzConfig",
            summary="uint8 images, and labels if any, from a numpy .npz file, mapped when uncompressed.",
        ),
        Component(
            name="latents",
            target="freeflow_data.latents:LatentsSource",
            config="freeflow_data.config:LatentsConfig",
            summary="States that `freeflow encode` computed with a codec; training needs neither images nor codec.",
        ),
    ]


@hookimpl
def freeflow_codecs() -> Iterable[Component]:
    """Pixels as states, Stable Diffusion's latents, and those of a small autoencoder of our own."""
    return [
        Component(
            name="pixels",
            target="freeflow_data.pixels:PixelCodec",
            config="freeflow_data.config:PixelsConfig",
            summary="uint8 [0, 255] <-> float [-1, 1], exact both ways.",
        ),
        Component(
            name="sd-vae",
            target="freeflow_data.sd_vae:SDVAECodec",
            config="freeflow_data.config:SDVAEConfig",
            summary="Stable Diffusion's autoencoder: uint8 (3, H, W) <-> latents (4, H/8, W/8); needs the extra `vae`.",
            source="Rombach et al. 2022, arXiv 2112.10752; weights: stabilityai/sd-vae-ft-mse and -ema",
        ),
        Component(
            name="small-vae",
            target="freeflow_data.small_vae:SmallVAECodec",
            config="freeflow_data.config:SmallVAEConfig",
            summary="Grey 28x28 <-> latents (4, 8, 8): a small autoencoder, for MNIST's digits packaged.",
            source="Kingma and Welling 2013, arXiv 1312.6114",
        ),
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
