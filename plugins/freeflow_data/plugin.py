"""Sources and codecs that ship with freeflow."""

from collections.abc import Iterable
from typing import Any

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
    """Pixels as states, latents of Stable Diffusion's autoencoders, and those of a small one of our own."""
    return [
        Component("pixels", ".plain:PixelCodec", ".config:PixelsConfig"),
        Component("sd-vae", ".sd_vae:AutoencoderKLCodec", ".config:SDVAEConfig"),
        Component("diffusers-vae", ".sd_vae:AutoencoderKLCodec", ".config:DiffusersVAEConfig"),
        Component("small-vae", ".small_vae:SmallVAECodec", ".config:SmallVAEConfig"),
    ]


@hookimpl
def freeflow_presets() -> Iterable[Preset]:
    """Teachers trained from these sources, and what becomes of students whose data are not the teacher's."""
    presets = (
        ("mnist", "pretrain", "pretrain-mnist", "A SiT of MNIST's digits, 28x28 in patches of 4, by flow matching"),
        ("mnist-pixels", "distill", "mnist-pixels", "Data-free one-step student of the MNIST teacher in pixels"),
        ("mnist-pixels", "compare", "compare-mnist-pixels", "Six objectives on the MNIST teacher, equal passes"),
        ("fashion-mnist", "pretrain", "pretrain-fashion-mnist", "A SiT of Fashion-MNIST's clothes, likewise"),
        ("mismatch", "compare", "compare-mismatch", "Data-based objectives on more and more augmented data"),
    )
    return [
        Preset(name, f"freeflow_data:presets/{file}.yaml", command=command, summary=summary)
        for name, command, file, summary in presets
    ]


@hookimpl
def freeflow_weights() -> Iterable[WeightFile]:
    """The two published autoencoders that SiT, REPA, DiT and FreeFlow work with."""
    known: dict[str, dict[str, Any]] = {
        "mse": {
            "summary": "Stable Diffusion's autoencoder, decoder finetuned for smooth reconstructions",
            "revision": "31f26fdeee1355a5c34592e401dd41e45d25a493",
            "size": 334_643_276,
            "sha256": "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
        },
        "ema": {"summary": "Stable Diffusion's autoencoder, decoder finetuned with the original loss"},
    }
    return [
        WeightFile(
            f"sd-vae-ft-{variant}",
            filename="diffusion_pytorch_model.safetensors",
            repository=f"stabilityai/sd-vae-ft-{variant}",
            source=f"https://huggingface.co/stabilityai/sd-vae-ft-{variant}",
            licence="MIT",
            **more,
        )
        for variant, more in known.items()
    ]
