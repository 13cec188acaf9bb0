"""diffusers' AutoencoderKL, of Stable Diffusion, SD3 and FLUX, as a codec. Nothing in its files is executed."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from freeflow_core.errors import CheckpointError, ConfigError
from freeflow_core.interfaces import BuildContext, Codec
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.network_file import check_tensors, load_tensors
from freeflow_core.torchvision_ops import diffusers_class
from freeflow_core.types import PortableNetwork
from freeflow_data.config import AutoencoderOptions, DiffusersVAEConfig, SDVAEConfig

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_POSTERIOR_STREAM = "sd-vae/posterior"

PUBLISHED_CONFIG: Mapping[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 256,
    "scaling_factor": 0.18215,
}
"""``config.json`` of stabilityai/sd-vae-ft-mse and -ema: the KL-f8 autoencoder of Stable Diffusion 1 and 2."""

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)$")


@final
class AutoencoderKLCodec(Codec):
    """x = scale (E(image) - shift), image = D(x / scale + shift), with a KL autoencoder (Rombach et al. 2022).

    The weights are loaded at the first image, and never without one: data-free training works on latents alone.

    ``locate`` gives their path, and may download; ``scale`` and ``shift`` None are those of config.json; ``name`` is
    for errors. ``seed`` is that of the posterior's noise. Results lie where the input lay.
    """

    def __init__(
        self,
        name: str,
        config: AutoencoderOptions,
        locate: Callable[[], Path],
        scale: float | None,
        shift: float | None,
        context: BuildContext,
    ) -> None:
        self._name = name
        self._config = config
        self._locate = locate
        self._device = context.device
        self._seed = context.seed
        self._dtype = _DTYPES[config.dtype]
        self._given = scale, shift
        self._scale, self._shift = 1.0, 0.0
        self._network: Any = None

    @classmethod
    def from_config(cls, config: SDVAEConfig | DiffusersVAEConfig, context: BuildContext) -> Self:
        if isinstance(config, DiffusersVAEConfig):
            folder = config.folder
            return cls("diffusers-vae", config, lambda: _part(folder), config.scale, config.shift, context)
        own = config.checkpoint
        locate = (lambda: context.weights(f"sd-vae-ft-{config.variant}")) if own is None else (lambda: own)
        return cls("sd-vae", config, locate, config.scale, 0.0, context)

    @property
    def is_loaded(self) -> bool:
        return self._network is not None

    def prepare(self) -> None:
        """Load the weights now, so that what is missing shows before the work and not after it.

        Raises:
            ConfigError: diffusers is not installed, or the weights are neither here nor to be had.
            CheckpointError: the weights are damaged or of another network.
        """
        if self._network is not None:
            return
        autoencoder_class()  # before a download, whatever it is that is missing
        path = self._locate()
        network: Any = load_autoencoder(path, self._dtype, self._device)
        scale, shift = self._given
        self._scale = _number(network.config, "scaling_factor", path) if scale is None else scale
        self._shift = _number(network.config, "shift_factor", path) if shift is None else shift
        if self._config.slicing:
            network.enable_slicing()
        if self._config.tiling:
            network.enable_tiling()
        self._network = network

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents (N, C, H / f, W / f) float32, f = 8 for the published weights, of uint8 images (N, 3, H, W).

        Raises ``ConfigError`` for images of another kind, or with sides that f does not divide; see also
        :meth:`prepare`.
        """
        mean, std = self.moments(images)
        if self._config.posterior == "mean":
            return mean
        draws = PhiloxDraws(self._seed, _image_index(images), device=mean.device)
        return mean + std * draws.noise(_POSTERIOR_STREAM, tuple(mean.shape[1:]))

    @torch.no_grad()
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents' Gaussian, whatever ``posterior`` says; as for :meth:`encode`."""
        self.prepare()
        factor = 2 ** (len(self._network.config.block_out_channels) - 1)
        if (
            images.dtype != torch.uint8
            or images.ndim != 4
            or images.shape[1] != 3
            or any(side % factor for side in images.shape[2:])
        ):
            raise ConfigError(
                f"The codec {self._name} encodes uint8 images (N, 3, H, W) with sides that are multiples of {factor}, "
                f"got {images.dtype} {tuple(images.shape)}. Repeat grey images over three channels, scale floats to "
                "0..255, crop or resize."
            )
        batches = [self._moments(batch) for batch in torch.split(images, self._config.decode_batch_size)]
        means, stds = zip(*batches, strict=True)
        return torch.cat(means), torch.cat(stds)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """uint8 images (N, 3, f h, f w) of latents (N, C, h, w) of any floating type.

        The network's [-1, 1] becomes trunc(clamp(127.5 v + 128, 0, 255)), the nearest of 0..255 for v = 2 p / 255 - 1,
        as the sampling scripts of ADM, DiT and SiT do (REPA's truncates 255 (v + 1) / 2: half a level darker on
        average). Raises ``ConfigError`` for latents of another shape; see also :meth:`prepare`.
        """
        self.prepare()
        channels = self._network.config.latent_channels
        if x.ndim != 4 or x.shape[1] != channels or not x.is_floating_point():
            raise ConfigError(
                f"The codec {self._name} decodes latents (N, {channels}, h, w), got {x.dtype} {tuple(x.shape)}. "
                "A model that works on pixels needs the codec pixels."
            )
        values = torch.cat([self._decode(batch) for batch in torch.split(x, self._config.decode_batch_size)])
        return values.mul_(127.5).add_(128).clamp_(0, 255).to(torch.uint8)

    def decode_with_gradient(self, x: Tensor) -> Tensor:
        self.prepare()
        return self._decode(x)

    def portable(self) -> PortableNetwork:
        self.prepare()
        config = {name: value for name, value in self._network.config.items() if not name.startswith("_")}
        config |= {"scaling_factor": self._scale, "shift_factor": self._shift}
        return PortableNetwork(type(self._network).__name__, config, self._network.state_dict())

    def _moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.to(self._device).float().div_(127.5).sub_(1).to(self._dtype)
        with torch.autocast(self._device.type, enabled=False):
            posterior = self._network.encode(pixels).latent_dist
        mean, std = (posterior.mean.float() - self._shift) * self._scale, posterior.std.float() * self._scale
        return mean.to(images.device), std.to(images.device)

    def _decode(self, x: Tensor) -> Tensor:
        # float32 first: latents of a float64 sampler are more than any network here, or an MPS device, can take.
        latents = x.to(self._device, torch.float32) / self._scale + self._shift
        with torch.autocast(self._device.type, enabled=False):
            values: Tensor = self._network.decode(latents.to(self._dtype)).sample
        return values.float().to(x.device)


def _image_index(images: Tensor) -> Tensor:
    """(N,) indices in [0, 2**63), functions of each image's bytes: its noise is the same in any batch and any order."""
    rows = images.cpu().contiguous().numpy()
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return torch.tensor([int.from_bytes(digest, "little") >> 1 for digest in digests], dtype=torch.int64)


def _part(folder: Path) -> Path:
    """The autoencoder's own folder, where ``folder`` is a pipeline's."""
    return folder / "vae" if (folder / "vae").is_dir() else folder


def _number(config: Any, name: str, path: Path) -> float:
    """Of an autoencoder's configuration; a shift that it does not name is none."""
    value, is_shift = config.get(name, None), name == "shift_factor"
    if value is None and is_shift:
        return 0.0
    number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    if not math.isfinite(number) or not (is_shift or number > 0):
        kind = "number" if is_shift else "number above 0"
        raise CheckpointError(f"{path / 'config.json'} gives {name}={value!r}; expected a finite {kind}.")
    return number


def load_autoencoder(path: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """An ``AutoencoderKL``, frozen, from a diffusers folder, or from a file with the published configuration.

    Raises:
        ConfigError: diffusers is not installed.
        CheckpointError: nothing there, not safetensors, or another network.
    """
    weights, config = (_weights_in(path), _read_config(path)) if path.is_dir() else (path, PUBLISHED_CONFIG)
    tensors = {_current_name(name): tensor.to(dtype) for name, tensor in load_tensors(weights)[0].items()}
    try:
        with torch.device("meta"):  # no weights are initialised: no time, and nothing drawn from torch's generator
            network: nn.Module = autoencoder_class().from_config(dict(config))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"diffusers builds no AutoencoderKL from {path / 'config.json'}: {error}.") from error
    check_tensors(network.state_dict(), tensors, f"autoencoder in {weights}")
    network.load_state_dict(tensors, assign=True)
    return network.to(device).eval().requires_grad_(False)


def autoencoder_class() -> Any:
    """diffusers' ``AutoencoderKL``. Raises ``ConfigError`` when it is not installed."""
    return diffusers_class("AutoencoderKL", "The codec of an AutoencoderKL", "vae")


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text("utf-8"))
        name = config.get("_class_name", "AutoencoderKL")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} holds no readable config.json ({error}). Expected an AutoencoderKL folder in the diffusers "
            f"layout: config.json beside {WEIGHTS_FILE}."
        ) from error
    if name != "AutoencoderKL":
        raise CheckpointError(f"{file} describes a {name}; expected an AutoencoderKL.")
    return config


def _weights_in(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    if folder / WEIGHTS_FILE in found:
        return folder / WEIGHTS_FILE
    if len(found) != 1:
        raise CheckpointError(
            f"{folder} holds {len(found) or 'no'} .safetensors files and no {WEIGHTS_FILE}. "
            "Expected an AutoencoderKL folder in the diffusers layout; pickled .bin weights are not read."
        )
    return found[0]


def _current_name(name: str) -> str:
    """The published files were written by an early diffusers, which named the attention's layers differently."""
    return _OLD_ATTENTION.sub(lambda m: f"{m[1]}.{_OLD_ATTENTION_NAMES[m[2]]}.{m[3]}", name)
