"""AdamW on the fused path: clipping and the skip of a non-finite step happen inside the kernel, on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from freeflow_core.config import OptimizerConfig
from freeflow_core.errors import CheckpointError

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def learning_rate(config: OptimizerConfig, images: int, total_images: int) -> float:
    """Rate after ``images`` of ``total_images``: linear warm-up, then the schedule."""
    peak = config.learning_rate
    warmup = config.warmup_images
    if images < warmup:
        return peak * (images + 1) / (warmup + 1)
    fraction = min(1.0, (images - warmup) / max(1, total_images - warmup))
    low = config.final_fraction
    if config.schedule == "cosine":
        return peak * (low + (1 - low) * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * fraction)).item()))
    if config.schedule == "linear":
        return peak * (1 - (1 - low) * fraction)
    if config.schedule == "inverse-sqrt":
        decay = config.decay_images or max(1, total_images // 10)
        return peak / max(1.0, images / decay) ** 0.5
    return peak


@final
class RoleOptimizer:
    """One role's AdamW.

    The fused kernel takes ``grad_scale`` (it divides the gradients) and ``found_inf`` (it leaves weights, moments
    and step count alone), which torch's own gradient scaler uses; both stay on the device, so nothing is synchronised.
    """

    def __init__(self, network: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.names = [name for name, p in network.named_parameters() if p.requires_grad]
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self._adam = torch.optim.AdamW(
            self.parameters,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients, 0-d on the device."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            return torch.zeros((), device=self.parameters[0].device)
        return torch.stack(torch._foreach_norm(gradients)).norm()

    def step(self, rate: float, norm: Tensor, skip: Tensor) -> None:
        """Update, clipped to ``clip_norm``, unless ``skip`` (0-d on the device) is 1; then forget the gradients."""
        for group in self._adam.param_groups:
            group["lr"] = rate
        clip = self.config.clip_norm
        scale = None if clip is None else (norm / clip).clamp_min(1).float()
        self._adam.grad_scale = scale  # type: ignore[attr-defined]
        self._adam.found_inf = skip.float()  # type: ignore[attr-defined]
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def forget(self) -> None:
        """Drop gradients without an update."""
        self._adam.zero_grad(set_to_none=True)

    def reset(self) -> None:
        """Forget the moments, for a new round."""
        self._adam.state.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """Moments by parameter name."""
        state = self._adam.state
        return {
            f"{moment}/{name}": state[p][moment]
            for name, p in zip(self.names, self.parameters, strict=True)
            if p in state
            for moment in _MOMENTS
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore moments. Raises :class:`CheckpointError` for names or shapes of another network."""
        self._adam.state.clear()
        known: set[str] = set()
        for name, p in zip(self.names, self.parameters, strict=True):
            keys = {moment: f"{moment}/{name}" for moment in _MOMENTS}
            known.update(keys.values())
            if keys["exp_avg"] not in tensors:
                continue
            if tensors[keys["exp_avg"]].shape != p.shape:
                raise CheckpointError(f"Optimizer state of {name!r} has another shape than the weights.")
            self._adam.state[p] = {
                moment: tensors[key].to(device=p.device, dtype=torch.float32 if moment == "step" else p.dtype)
                for moment, key in keys.items()
            }
        if unknown := sorted(tensors.keys() - known):
            raise CheckpointError(f"The checkpoint holds optimizer state of unknown weights: {', '.join(unknown[:5])}.")
