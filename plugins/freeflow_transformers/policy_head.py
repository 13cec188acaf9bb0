"""The last layer of a transformer that emits a policy."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from freeflow_transformers.architecture import TransformerConfig
from freeflow_transformers.config_policy import PolicyOptions
from freeflow_transformers.network import FinalLayer, modulate


@final
class PolicyHead(nn.Module):
    """Tokens (N, T, width) to the patches of several images of C channels each, (N images, T, patch_size^2 C).

    In the place of :class:`freeflow_transformers.network.FinalLayer`, whose parameter names it keeps, it lets the
    network answer with as many images a sample as a policy has parts, folded into the batch: K velocities; for ``gm``
    K logits, one channel each, in as many images as they fill; and one image that holds the logarithm of the deviation
    everywhere, predicted from the conditioning alone, which gets no gradient from it.

    Args:
        architecture: of the network.
        options: of the policy.
        generator: host generator of what starts at random.
        device: of the weights; ``meta`` for the shapes alone.
    """

    def __init__(
        self,
        architecture: TransformerConfig,
        options: PolicyOptions,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.channels, self.components = architecture.channels, options.components
        mixture = options.policy == "gm"
        self._num_maps = self.components + (-(-self.components // self.channels) if mixture else 0)
        self.num_images = self._num_maps + int(mixture)
        self._options = options
        with torch.device("meta"):  # no constructor draws weights from the global generator
            plain = FinalLayer(architecture.width, architecture.patch_size, architecture.channels)
            self.norm_final, self.adaLN_modulation = plain.norm_final, plain.adaLN_modulation
            self.linear = nn.Linear(architecture.width, self._num_maps * plain.linear.out_features)
            self.log_std = _deviation(architecture.width, options.std_width) if mixture else None
        self.to_empty(device=device)
        if device.type != "meta":
            self._reset(generator)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=2)
        maps: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        num, tokens = maps.shape[:2]
        images = maps.reshape(num, tokens, self._num_maps, -1).transpose(1, 2)
        if self.log_std is not None:
            log_std = self.log_std(c.detach()).reshape(num, 1, 1, 1).to(images.dtype)
            images = torch.cat([images, log_std.expand(num, 1, *images.shape[2:])], 1)
        return images.reshape(num * self.num_images, tokens, -1)

    def velocities(self, output: Tensor) -> Tensor:
        """(N, K, C, H, W) of the images (N, num_images C, H, W)."""
        velocities = output[:, : self.components * self.channels]
        return velocities.reshape(-1, self.components, self.channels, *output.shape[2:])

    def mixture(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K, 1, H, W) and logarithms of the deviation (N,), for ``gm``."""
        first = self.components * self.channels
        return output[:, first : first + self.components].unsqueeze(2), output[:, -1, 0, 0]

    @torch.no_grad()
    def take(self, linear: nn.Linear, generator: torch.Generator) -> None:
        """Start every velocity as a velocity network's last layer, (patch_size^2 out_channels, width), logits at 0.

        Of its out_channels the first C are the velocity. The components of ``gm`` differ by ``mean_noise``, each and
        in each channel by another number.
        """
        for own, other in ((self.linear.weight, linear.weight), (self.linear.bias, linear.bias)):
            velocities = self._velocities(own.zero_())
            pixels = velocities.shape[1]
            velocities.copy_(other.reshape(pixels, -1, *other.shape[1:])[:, : self.channels].expand_as(velocities))
        self._spread(generator)

    @torch.no_grad()
    def _reset(self, generator: torch.Generator) -> None:
        """A last layer and a modulation of 0, as in DiT, but for the components' differences."""
        for parameter in self.parameters():
            parameter.zero_()
        self._spread(generator)
        if self.log_std is not None:
            hidden, last = self.log_std[1], self.log_std[3]
            assert isinstance(hidden, nn.Linear)
            assert isinstance(last, nn.Linear)
            nn.init.xavier_uniform_(hidden.weight, generator=generator)
            nn.init.constant_(last.bias, math.log(self._options.initial_std))

    def _spread(self, generator: torch.Generator) -> None:
        if self.log_std is not None:
            noise = torch.randn(self.components, 1, self.channels, generator=generator, device="cpu")
            bias = self._velocities(self.linear.bias)
            bias.add_(self._options.mean_noise * noise.to(bias.device, bias.dtype))

    def _velocities(self, parameter: Tensor) -> Tensor:
        """The velocities' part of the linear layer's weight or bias, a view (K, pixels, C, ...)."""
        maps = parameter.view(self._num_maps, -1, self.channels, *parameter.shape[1:])
        return maps[: self.components]


def _deviation(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, 1))
