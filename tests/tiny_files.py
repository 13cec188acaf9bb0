"""Data and networks on disk, as small as their formats allow."""

import struct

import numpy as np
import pytest
import torch

from freeflow_core.torchvision_ops import ensure_torchvision_ops


def idx(values):
    """The bytes of an IDX file."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_mnist(folder, **parts):
    """MNIST's files of the parts ``train`` and ``t10k``, uint8 images (N, H, W); image i has the class i % 10."""
    for part, images in parts.items():
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx((np.arange(len(images)) % 10).astype(np.uint8)))


def save_autoencoder(folder, **config):
    """Stable Diffusion's, in the diffusers layout: halves the sides once; tiles are 32 pixels, 16 latents."""
    ensure_torchvision_ops()
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=32, **config,
        ).save_pretrained(folder)  # fmt: skip
    return folder
