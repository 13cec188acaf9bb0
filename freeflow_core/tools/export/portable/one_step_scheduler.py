"""The scheduler of a flow-map student, as diffusers loads it: torch and diffusers, without freeflow."""

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor


class OneStepScheduler(SchedulerMixin, ConfigMixin):
    """Jumps from time 1, noise, to 0, data: x_s = x_t - (t - s) u, with the network's mean velocity u over [s, t].

    ``few_steps``: whether the student has learnt to jump from times below 1 too, and so may take several steps.
    """

    order = 1

    @register_to_config
    def __init__(self, few_steps: bool = False) -> None:
        self.timesteps, self.ends = torch.ones(1), torch.zeros(1)

    def set_timesteps(self, num_inference_steps: int = 1, device: str | torch.device | None = None) -> None:
        """``timesteps`` (K,), where jumps start, and ``ends`` (K,). Raises ``ValueError`` for K that was not learnt."""
        if num_inference_steps < 1 or (num_inference_steps > 1 and not self.config.few_steps):
            raise ValueError(
                f"num_inference_steps={num_inference_steps}: this student was trained to jump from noise to data in 1."
            )
        grid = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64).float().to(device)
        self.timesteps, self.ends = grid[:-1], grid[1:]

    def step(self, model_output: Tensor, timestep: Tensor, end: Tensor, sample: Tensor) -> Tensor:
        """The state at ``end`` of a jump from ``timestep``."""
        return sample - (timestep - end) * model_output
