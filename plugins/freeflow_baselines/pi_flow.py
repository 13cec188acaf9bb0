"""pi-Flow: the network emits a policy, which must answer as the teacher on the states it leads to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from freeflow_baselines.config_generative import PiFlowConfig
from freeflow_baselines.rows import draw_guidance, guided_field, noised_rows, root_mean_square
from freeflow_core.config import ComponentConfig
from freeflow_core.interfaces import (
    BuildContext,
    Context,
    Models,
    Objective,
    PolicyStudent,
    Role,
    StartTimes,
    Student,
    Teacher,
)
from freeflow_core.math.flow import like_states, mean_square
from freeflow_core.math.policies import Policy, raw_time, roll_policy, shifted_time
from freeflow_core.types import Batch, Condition, Draws, Loss, Progress, index_condition


@final
@dataclass(frozen=True)
class Segments:
    """Where R policies begin, and the segments [s, t] they are for.

    Args:
        x: (R, *D) states at
        t: (R,) times; with
        s: (R,) the segments' ends, float64 on the host.
        condition: R conditions.
        guidance: (R,) guidance weights on the host.
    """

    x: Tensor
    t: Tensor
    s: Tensor
    condition: Condition
    guidance: Tensor


@final
class PiFlow(Objective):
    """min E || pi(x_a, a) - v(x_a, a) ||^2 / 2 on states x_a where the student's own policy leads.

    Imitation distillation (pi-ID; Chen et al. 2025, arXiv 2510.14974): the network is asked at the
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

    @classmethod
    def from_config(cls, config: ComponentConfig, context: BuildContext) -> Self:
        assert isinstance(config, PiFlowConfig)
        return cls(config)

    def roles(self, student: Student, teacher: Teacher | None) -> dict[str, Role]:
        return {}

    def losses(
        self, models: Models, batch: Batch, draws: Draws, progress: Progress, context: Context
    ) -> dict[str, Loss]:
        model = models["student"]
        network: PolicyStudent = model.bare
        segments = self._from_data(models, batch, draws) if self.needs_data else self._from_prior(models, batch, draws)
        output = model.wrapped(segments.x, *_arguments(segments))
        policy = network.policy(output, segments.x, segments.t, segments.s)
        num_chains = len(segments.t) // len(draws.index)
        with torch.no_grad():
            explorer = self._explorer(network, output.detach(), segments, draws, range(num_chains))
            states, times = self._visit(network, explorer, segments, self._shares(draws, num_chains))

        num, repeated = len(times), torch.arange(len(segments.t)).repeat(len(times))
        condition = index_condition(segments.condition, repeated)
        guidance = segments.guidance[repeated]
        v = guided_field(models, torch.cat(states), torch.cat(times), condition, guidance, self._config)
        answers = [policy.velocity(x, t) for x, t in zip(states, times, strict=True)]
        residual = torch.cat(answers) - v
        each = mean_square(residual).reshape(num, num_chains, len(draws.index)).mean(0)
        per_sample = 0.5 * self._config.loss_scale * (self._lengths(num_chains).to(each) * each).sum(0)
        terms = {"imitation_residual": root_mean_square(residual), "velocity": root_mean_square(v)}
        return {"student": Loss(per_sample, terms)}

    def _from_data(self, models: Models, batch: Batch, draws: Draws) -> Segments:
        """One segment a row, chosen by its length, from data noised to its start."""
        network: PolicyStudent = models["student"].bare
        raw = draws.uniform("segment")
        index = torch.searchsorted(-self._bounds, -raw, right=True) - 1
        t, s = (shifted_time(self._bounds[index + end], network.shift) for end in (0, 1))
        rows = noised_rows(models, batch, draws, t, self._config)
        return Segments(rows.x_t, t, s, rows.condition, rows.guidance)

    @torch.no_grad()
    def _from_prior(self, models: Models, batch: Batch, draws: Draws) -> Segments:
        """All segments of each row, one after the other along the student's own path."""
        network: PolicyStudent = models["student"].bare
        teacher = models.teacher
        condition = teacher.sample_condition(draws) if batch.condition is None else batch.condition
        guidance, x = draw_guidance(draws, self._config), draws.noise("prior", teacher.sample_shape)
        chain = []
        for k in range(self._config.num_segments):
            t, s = (torch.full_like(guidance, float(self._bounds[k + end])) for end in (0, 1))
            t, s = shifted_time(t, network.shift), shifted_time(s, network.shift)
            chain.append(Segments(x, t, s, condition, guidance))
            if k + 1 < self._config.num_segments:
                output = network(x, *_arguments(chain[-1]))
                x = self._roll(network, self._explorer(network, output, chain[-1], draws, range(k, k + 1)), x, t, s)
        return _joined(chain)

    def _explorer(
        self, network: PolicyStudent, output: Tensor, segments: Segments, draws: Draws, numbers: range
    ) -> Policy:
        """The policy that is followed: without some components. ``numbers`` are the segments' places in the chain."""
        policy = network.policy(output, segments.x, segments.t, segments.s)
        num, share = policy.num_components, self._config.component_dropout
        if num == 1 or share == 0:
            return policy
        threshold = torch.special.ndtri(torch.tensor(share, dtype=torch.float64)).item()
        noise = torch.cat([draws.noise(f"component-dropout-{k}", (num,)) for k in numbers])
        return policy.without(noise < threshold)

    def _visit(
        self, network: PolicyStudent, policy: Policy, segments: Segments, shares: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Where the policy leads: states (R, *D) and times (R,), once for each column of ``shares`` (R, M).

        ``shares`` are rising parts of the segment in raw time, 0 at its start, on the host.
        """
        raw_t, raw_s = raw_time(segments.t, network.shift), raw_time(segments.s, network.shift)
        states, times = [], []
        x, t = segments.x, segments.t
        for share in shares.unbind(1):
            a = shifted_time(raw_t - share * (raw_t - raw_s), network.shift)
            x, t = self._roll(network, policy, x, t, a), a
            states.append(x)
            times.append(t)
        return states, times

    @staticmethod
    def _roll(network: PolicyStudent, policy: Policy, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        rolled = roll_policy(policy, x, t, s, num_substeps=network.num_substeps, shift=network.shift)
        return rolled.to(x.dtype)

    def _shares(self, draws: Draws, num_chains: int) -> Tensor:
        """(R, M) uniform in (0, 1), rising along each row."""
        columns = [
            torch.cat([draws.uniform(f"state-{k}-{m}") for k in range(num_chains)])
            for m in range(self._config.num_states)
        ]
        return torch.stack(columns, 1).sort(1).values

    def _lengths(self, num_chains: int) -> Tensor:
        """(num_chains, 1) weights: a segment of a chain counts by its length; one chosen by its length counts fully."""
        lengths = self._bounds[:-1] - self._bounds[1:] if num_chains > 1 else torch.ones(1, dtype=torch.float64)
        return lengths.unsqueeze(1)


def segment_bounds(num_segments: int, final_scale: float) -> Tensor:
    """(num_segments + 1,) raw times falling from 1 to 0; the last segment has ``final_scale`` of another's length."""
    bounds = 1 - torch.arange(num_segments + 1, dtype=torch.float64) / (num_segments - 1 + final_scale)
    bounds[-1] = 0.0
    return bounds


def _arguments(segments: Segments) -> tuple[Tensor, Tensor, Condition, Tensor]:
    """What the network takes besides the states."""
    t, s, guidance = (like_states(values, segments.x) for values in (segments.t, segments.s, segments.guidance))
    return t, s, segments.condition, guidance


def _joined(chain: list[Segments]) -> Segments:
    """All segments as one batch: the first of all rows, the second of all rows, ..."""
    if len(chain) == 1:
        return chain[0]
    first = chain[0]
    rows = torch.arange(len(first.t)).repeat(len(chain))
    return Segments(
        torch.cat([part.x for part in chain]),
        torch.cat([part.t for part in chain]),
        torch.cat([part.s for part in chain]),
        index_condition(first.condition, rows),
        first.guidance[rows],
    )
