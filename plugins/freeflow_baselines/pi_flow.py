"""pi-Flow: the network emits a policy, which must answer as the teacher on the states it leads to."""

from typing import final

import torch
from torch import Tensor

from freeflow_baselines.config import PiFlowConfig
from freeflow_baselines.shared import rows_from_data
from freeflow_core.interfaces import Context, Models, Objective, PolicyStudent, StartTimes
from freeflow_core.math.flow import mean_square
from freeflow_core.math.policies import Policy, raw_time, roll_policy, shifted_time
from freeflow_core.objective_kit.jumps import (
    guided_field,
    joined,
    jumps_from_noise,
    jumps_to,
    raw_output,
    root_mean_square,
)
from freeflow_core.objective_kit.passes import Jumps
from freeflow_core.types import Batch, Draws, Loss, Losses, Progress


@final
class PiFlow(Objective):
    """min E || pi(x_a, a) - v(x_a, a) ||^2 / 2 on states x_a where the student's own policy leads.

    Imitation distillation (pi-ID; Chen et al. 2025): the network is asked at the
    segment's start (x_t, t) and emits pi; a detached copy is rolled to times a in [s, t]; there pi, live but at a fixed
    state, regresses the guided teacher. No gradient runs through the path. With states: prior, segments follow each
    other along the student's own path from noise (the paper's data-free form); each counts by its length.

    Fixed point: a policy equal to the teacher's field on its own path, hence the teacher's trajectory, to the Euler
    error of the substeps; where the policy cannot express the field, the best one in the mean over [s, t]. Cost: F + B
    + M T for M states (7F with M = 2, guided, B = 2F); states: prior, K segments: K times that and K - 1 F. Known
    failures: a gradient through the rollout; segments or shift changed after training (they are the student's).

    Left out, being for text-to-image alone: trajectories mixed with the teacher's at the start of training, velocities
    averaged over a window, and a mixture cooled down in sampling.

    Random streams: ``noise`` or ``prior``, ``guidance``, ``segment``, ``state-<k>-<m>``, ``component-dropout-<k>``.
    """

    requires = PolicyStudent

    def __init__(self, config: PiFlowConfig) -> None:
        self._config = config
        self._bounds = segment_bounds(config.num_segments, config.final_segment_scale)
        self.needs_data = config.states == "data"
        self.start_times = StartTimes.PRIOR if config.num_segments == 1 else StartTimes.ANY

    def losses(self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context) -> Losses:
        config, student = self._config, models["student"]
        network: PolicyStudent = student.bare
        segments = self._from_data(models, batch, draws) if self.needs_data else self._from_noise(models, batch, draws)
        chain = range(len(segments.t) // len(draws.index))  # segments of one row
        output = raw_output(student.wrapped, segments)
        policy = network.policy(output, segments.x_t, segments.t, segments.s)

        # A detached copy leads to states; there the live policy, at fixed states, answers as the teacher does.
        with torch.no_grad():
            explorer = self._explorer(network, output.detach(), segments, draws, chain)
            states, times = self._visited(network, explorer, segments, self._shares(draws, chain))
        v = guided_field(models, torch.cat(states), torch.cat(times), joined(*[segments] * len(states)), config)
        residual = torch.cat([policy.velocity(x, t) for x, t in zip(states, times, strict=True)]) - v
        each = mean_square(residual).reshape(len(states), len(chain), -1).mean(0)
        # Segments of a chain count by their lengths; one that was chosen by its length counts fully.
        lengths = self._bounds[:-1] - self._bounds[1:] if len(chain) > 1 else torch.ones(1, dtype=torch.float64)
        per_sample = 0.5 * config.loss_scale * (lengths.unsqueeze(1).to(each) * each).sum(0)
        terms = {"imitation_residual": root_mean_square(residual), "velocity": root_mean_square(v)}
        return {"student": Loss(per_sample, terms)}

    def _from_data(self, models: Models, batch: Batch, draws: Draws) -> Jumps:
        """One segment a row, chosen by its length, from data noised to its start."""
        shift = models["student"].bare.shift
        index = torch.searchsorted(-self._bounds, -draws.uniform("segment"), right=True) - 1
        t, s = (shifted_time(self._bounds[index + end], shift) for end in (0, 1))
        return jumps_to(s, rows_from_data(batch, draws, t, self._config))

    @torch.no_grad()
    def _from_noise(self, models: Models, batch: Batch, draws: Draws) -> Jumps:
        """All segments of each row, one after the other along the student's own path."""
        network: PolicyStudent = models["student"].bare
        following = jumps_from_noise(models, batch, draws, self._config)
        bounds = shifted_time(self._bounds, network.shift)
        chain: list[Jumps] = []
        for k in range(self._config.num_segments):
            if chain:
                output = raw_output(network, chain[-1])
                policy = self._explorer(network, output, chain[-1], draws, range(k - 1, k))
                x, t, s = chain[-1][:3]
                following = following._replace(x_t=_rolled(network, policy, x, t, s))
            t, s = (bounds[k + end].expand(len(draws.index)) for end in (0, 1))
            chain.append(following._replace(t=t, s=s))
        return joined(*chain)

    def _explorer(self, network: PolicyStudent, output: Tensor, segments: Jumps, draws: Draws, chain: range) -> Policy:
        """The policy that is followed: without some components. ``chain`` are the segments' places on their paths."""
        policy = network.policy(output, segments.x_t, segments.t, segments.s)
        num, share = policy.num_components, self._config.component_dropout
        if num == 1 or share == 0:
            return policy
        threshold = torch.special.ndtri(torch.tensor(share, dtype=torch.float64)).item()
        noise = torch.cat([draws.noise(f"component-dropout-{k}", (num,)) for k in chain])
        return policy.without(noise < threshold)

    def _shares(self, draws: Draws, chain: range) -> Tensor:
        """(R, M) parts of a segment in raw time, uniform in (0, 1), rising along each row."""
        columns = range(self._config.num_states)
        shares = [torch.cat([draws.uniform(f"state-{k}-{m}") for k in chain]) for m in columns]
        return torch.stack(shares, 1).sort(1).values

    @staticmethod
    def _visited(
        network: PolicyStudent, policy: Policy, segments: Jumps, shares: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Where the policy leads: states (R, *D) and times (R,), once for each column of ``shares`` (R, M)."""
        raw_t, raw_s = raw_time(segments.t, network.shift), raw_time(segments.s, network.shift)
        states, times = [segments.x_t], [segments.t]
        for share in shares.unbind(1):
            a = shifted_time(raw_t - share * (raw_t - raw_s), network.shift)
            states.append(_rolled(network, policy, states[-1], times[-1], a))
            times.append(a)
        return states[1:], times[1:]


def _rolled(network: PolicyStudent, policy: Policy, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The policy followed from t to s, (N, *D)."""
    return roll_policy(policy, x, t, s, num_substeps=network.num_substeps, shift=network.shift).to(x.dtype)


def segment_bounds(num_segments: int, final_scale: float) -> Tensor:
    """(num_segments + 1,) raw times falling from 1 to 0; the last segment has ``final_scale`` of another's length."""
    bounds = 1 - torch.arange(num_segments + 1, dtype=torch.float64) / (num_segments - 1 + final_scale)
    bounds[-1] = 0.0
    return bounds
