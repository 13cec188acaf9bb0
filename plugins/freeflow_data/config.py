"""Options of the sources and codecs."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from freeflow_core.config import ComponentConfig

OnError = Literal["refuse", "skip"]
AugmentationName = Literal["flip", "shift", "rotation"]
Padding = Literal["edge", "reflect", "black"]
Resize = Literal["adm", "bicubic", "lanczos"]


class PriorConfig(ComponentConfig):
    """No data at all: training starts from noise and conditions."""


class PixelsConfig(ComponentConfig):
    """uint8 [0, 255] <-> float [-1, 1], exact both ways."""


class SmallVAEConfig(ComponentConfig):
    """Grey 28x28 <-> latents (4, 8, 8): a small autoencoder, for MNIST's digits packaged.

    Source: Kingma and Welling 2013, arXiv 1312.6114
    """

    checkpoint: Path | None = None
    """Weights that `python -m freeflow_data.train_autoencoder` wrote; null: MNIST's, packaged."""
    batch_size: PositiveInt = Field(256, description="Images that pass through the network at once.")


class AutoencoderOptions(ComponentConfig):
    """What the codecs of diffusers' AutoencoderKL share."""

    posterior: Literal["mean", "sample"] = "mean"
    """What encoding takes of each image's Gaussian; a sample's noise depends on seed and image."""
    dtype: Literal["float32", "bf16", "fp16"] = Field("float32", description="Precision of the autoencoder alone.")
    decode_batch_size: PositiveInt = Field(8, description="Images decoded, or encoded, at once.")
    slicing: bool = Field(False, description="One image at a time inside each batch: least memory for exact results.")
    tiling: bool = Field(False, description="Images above 256 pixels in blended tiles: less memory, colours may shift.")


class SDVAEConfig(AutoencoderOptions):
    """Stable Diffusion's autoencoder: uint8 (3, H, W) <-> latents (4, H/8, W/8); needs the extra `vae`.

    Source: Rombach et al. 2022, arXiv 2112.10752; weights: stabilityai/sd-vae-ft-mse and -ema
    """

    variant: Literal["mse", "ema"] = "mse"
    """Published weights: stabilityai/sd-vae-ft-mse or sd-vae-ft-ema, fetched on first use."""
    checkpoint: Path | None = None
    """Your own copy instead: a folder in the diffusers layout, or a .safetensors file of the published shape."""
    scale: PositiveFloat = Field(0.18215, description="Latents are multiplied by this, so that they vary about 1.")


class DiffusersVAEConfig(AutoencoderOptions):
    """The autoencoder of a diffusers pipeline, such as SD3's or FLUX's, from a local folder; needs the extra `vae`.

    Source: Esser et al. 2024, arXiv 2403.03206 (16 channels, shifted latents)
    """

    folder: Path
    """Folder of a pipeline, whose part `vae` is used, or of an AutoencoderKL: config.json beside .safetensors."""
    scale: PositiveFloat | None = None
    """Latents less the shift are multiplied by this; null: scaling_factor of config.json."""
    shift: float | None = Field(None, description="Subtracted from latents first; null: shift_factor of config.json.")


class AugmentationConfig(ComponentConfig):
    """One augmentation, written ``rotation`` or ``{name: rotation, strength: 0.5}``."""

    name: AugmentationName = Field(description="What is done.")
    strength: float = Field(0.5, ge=0, le=1, description="How much at most; 0: nothing, bit for bit.")
    probability: float = Field(1.0, ge=0, le=1, description="Share of the images it is done to.")
    padding: Padding = Field("edge", description="What moves in from outside the image (shift, rotation).")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class ImageOptions(ComponentConfig):
    """What all sources of images have in common: their order, and what is done to training images."""

    seed: int = Field(0, ge=0, lt=2**63, description="Order of the training images, and draws of the augmentations.")
    split_seed: int = Field(0, ge=0, lt=2**63, description="Which images are held out; keep it to compare runs.")
    augment: tuple[AugmentationConfig, ...] = ()
    """Augmentations of training images, in order: flip, shift, rotation."""
    augment_strength: float = Field(1.0, ge=0, le=1, description="Factor of every strength; 0: none, bit for bit.")


class DigitsConfig(ImageOptions):
    """1797 handwritten digits, 8x8 grey, 10 classes, stratified held-out split; no download.

    Source: scikit-learn load_digits; UCI 80, Alpaydin and Kaynak 1998
    """

    held_out: int = Field(597, ge=0, description="Images kept from training, each class in proportion; 0: none.")


class FileOptions(ImageOptions):
    """What sources that read files have in common."""

    on_error: OnError = "refuse"
    """Images that cannot be used: refuse the data, or skip them. Both name and count them."""


class MNISTConfig(FileOptions):
    """MNIST's idx files from a folder: 60000 digits to train on, 10000 held out, 28x28 grey.

    Source: LeCun, Bottou, Bengio and Haffner 1998
    """

    path: Path = Field(Path("data/mnist"), description="Folder with the four idx files, compressed (.gz) or not.")
    held_out: Literal["test"] | Annotated[int, Field(ge=0)] = "test"
    """test: the test files; a number: that many of the training files, each class in proportion; 0: none."""


class FashionMNISTConfig(MNISTConfig):
    """Fashion-MNIST's idx files from a folder: ten kinds of clothes, 28x28 grey.

    Source: Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747
    """

    path: Path = Field(Path("data/fashion-mnist"), description="Folder with the four idx files, plain or .gz.")


class NpzConfig(FileOptions):
    """uint8 images, and labels if any, from a numpy .npz file, mapped when uncompressed."""

    path: Path = Field(description="The .npz file. Stored uncompressed (np.savez) it is mapped, not loaded.")
    images: str | None = Field(None, description="Name of the array of images; null: the first of images, x, arr_0.")
    labels: str | None = None
    """Name of the array of labels; null: the first of labels, label, y, arr_1, if any; none: none."""
    layout: Literal["auto", "nhwc", "nchw"] = Field("auto", description="Where the channels are; auto: from the shape.")
    num_classes: PositiveInt | None = Field(None, description="Number of classes; null: the largest label plus one.")
    held_out: int = Field(0, ge=0, description="Images kept from training, each class in proportion.")


class ImageFolderConfig(FileOptions):
    """PNG, JPEG, WebP and BMP files; classes from sub-folders, a csv or a json file, or none.

    Source: centre crop: Dhariwal and Nichol 2021, arXiv 2105.05233
    """

    path: Path = Field(description="Folder with .png, .jpg, .webp or .bmp images, searched with all its sub-folders.")
    labels: str = Field("auto", min_length=1)
    """folders: the first sub-folder's name; none: unlabelled; a path: a .csv or .json file of file and label; auto:
    folders, where there are any."""
    num_classes: PositiveInt | None = Field(None, description="Number of classes; null: as many as the labels name.")
    size: PositiveInt | None = None
    """Side in pixels to resize and crop to; null: as they are, alike."""
    resize: Resize = "adm"
    """How the shorter side becomes `size` before the centre crop; adm: halved by a box filter, then bicubic (ADM)."""
    channels: Literal[1, 3] | None = Field(None, description="1: grey, 3: colour; null: grey when all images are.")
    check: Literal["headers", "decode", "none"] = "headers"
    """What is looked at before training: every file's header and end, every pixel, or the first image."""
    workers: PositiveInt = Field(4, description="Threads that check and decode images.")
    held_out: int = Field(0, ge=0, description="Images kept from training, each class in proportion.")


class LatentsConfig(ComponentConfig):
    """States that `freeflow encode` computed with a codec; training needs neither images nor codec."""

    path: Path = Field(description="Folder written by `freeflow encode`.")
    sample: bool = Field(True, description="Draw each latent anew where the codec has a posterior; false: its mean.")
    flip: bool | None = Field(None, description="Take mirrored copies at random; null: when there are copies.")
    seed: int = Field(0, ge=0, lt=2**63, description="Order of the latents, and draws of copy and posterior.")
    on_error: OnError = Field("refuse", description="Missing or damaged shards: refuse the folder, or skip them.")
