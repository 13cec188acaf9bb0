"""Class-conditional images in one network evaluation: a diffusers pipeline that needs torch and diffusers alone."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class FreeFlowPipeline(DiffusionPipeline):
    """Noise to images by a student distilled with freeflow.

    Args:
        transformer: its network.
        scheduler: jumps by what the network predicts.
        vae: decodes latents; None for a student of pixels.
        guidance_scale: the guidance weight that the student was scored with, its default.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ("vae",)

    def __init__(self, transformer: Any, scheduler: Any, vae: Any = None, guidance_scale: float = 1.0) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.register_to_config(guidance_scale=guidance_scale)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | None = None,
        num_images: int | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Images.

        Args:
            class_labels: one class, or classes that are cycled; None: all in turn.
            num_images: None: one for each class of ``class_labels``, and of the model where that is None too.
            guidance_scale: the guidance weight, an input of the network, 1 for none; None: the student's own.
            num_inference_steps: above 1 only for students that have learnt to jump from any time.
            generator: of the noise.
            seed: in place of ``generator``; image i is then the sample i of ``freeflow sample --seed SEED``.
            latents: (N, C, H, W) noise, in place of both.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.
        """
        config = self.transformer.config
        num_classes = config.num_classes
        labels = [class_labels] if isinstance(class_labels, int) else list(class_labels or range(num_classes))
        if labels and not all(0 <= label < max(num_classes, 1) for label in labels):
            raise ValueError(f"class_labels must lie in 0 ... {num_classes - 1}, got {labels}.")
        if latents is not None:
            num_images = len(latents)
        num_images = num_images or len(labels) or 1
        shape, dtype, device = tuple(config.sample_shape), self.transformer.dtype, self._execution_device
        if latents is None and seed is not None:
            latents = freeflow_noise(seed, num_images, shape)
        elif latents is None:
            latents = randn_tensor((num_images, *shape), generator=generator, device=device, dtype=dtype)
        state = latents.to(device, dtype)
        classes = torch.tensor([labels[i % len(labels)] for i in range(num_images)], device=device) if labels else None
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        guidance = torch.full((num_images,), scale, device=device)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for time, end in self.progress_bar(list(zip(self.scheduler.timesteps, self.scheduler.ends, strict=True))):
            velocity = self.transformer(state, time.expand(num_images), end.expand(num_images), classes, guidance)
            state = self.scheduler.step(velocity, time, end, state)
        if self.vae is not None:
            config = self.vae.config
            latents = state.to(self.vae.dtype) / config.get("scaling_factor", 1.0) + (config.get("shift_factor") or 0.0)
            state = self.vae.decode(latents, return_dict=False)[0]
        images = VaeImageProcessor().postprocess(state.float(), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def freeflow_noise(seed: int, num: int, shape: Sequence[int]) -> Tensor:
    """(num, *shape) float32 normals, those of ``freeflow sample``: row i depends on (seed, i) alone (Philox)."""
    size = math.prod(shape)
    counters = -(-size // 4)
    stream = int.from_bytes(hashlib.blake2b(b"prior", digest_size=8).digest(), "little")
    key = np.array([seed, stream], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw(4 * num * counters).reshape(num, -1)[:, :size]
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return torch.special.ndtri(torch.from_numpy(uniform)).float().reshape(num, *shape)
