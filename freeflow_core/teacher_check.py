"""`freeflow teacher check`: is a teacher read as its network means it, and if not, in which other way does it fit?"""

import math
import time
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from freeflow_core.errors import FreeflowError
from freeflow_core.interfaces import ConvertibleTeacher, Teacher
from freeflow_core.math.calibration import (
    GOOD,
    Diagnosis,
    deviation,
    diagnose,
    draw_noises,
    enough_rows,
    noise_slope,
    times,
)
from freeflow_core.math.derivative import AGREES, forward_mode_error
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.teacher_proposals import COLLAPSED, Probe, Proposal, propose
from freeflow_core.types import Check, Draws, Status, describe, index_condition

_DERIVATIVE_ROWS = 2
_FEW_WEIGHTS = 50_000_000
_LARGE = 1e3
_LOOKS = 8


@dataclass(frozen=True)
class TeacherReport:
    """Findings in order, conventions that would fit, and the samples (N, *D)."""

    checks: tuple[Check, ...]
    proposals: tuple[Proposal, ...] = ()
    samples: Tensor | None = field(default=None, repr=False)

    @property
    def is_right(self) -> bool:
        return not any(check.status == "error" for check in self.checks)


@torch.no_grad()
def check_built_teacher(
    teacher: Teacher,
    *,
    num: int | None = None,
    num_steps: int = 16,
    seed: int = 0,
    device: torch.device,
    search: bool = True,
) -> TeacherReport:
    """Integrate ``teacher``, which lies on ``device``, from noise to data and measure it.

    Args:
        num: samples; None: 16, and more of small states.
        num_steps: midpoint steps, two passes each.
        search: try other conventions where the given one does not fit.
    """
    reference = next((t for t in (*teacher.parameters(), *teacher.buffers()) if t.is_floating_point()), None)
    found = torch.float32 if reference is None else reference.dtype
    dtype = torch.promote_types(found, torch.float32)
    num = num or max(16, enough_rows(teacher.sample_shape))
    draws = PhiloxDraws(seed, torch.arange(num), device=device, dtype=dtype)
    return _Examination(teacher, draws, num_steps, search).report()


@final
class _Examination:
    """The checks one by one; what one finds, later ones use."""

    def __init__(self, teacher: Teacher, draws: PhiloxDraws, num_steps: int, search: bool) -> None:
        self._teacher = teacher
        self._draws = draws
        self._num_steps = num_steps
        self._search = search
        self._z, self._noises = draw_noises(teacher.sample_shape, draws)
        self._condition = teacher.balanced_condition(draws.index)
        self._checks: list[Check] = []

    def report(self) -> TeacherReport:
        self._add("teacher", "ok", self._described())
        if not self._answers():
            return TeacherReport(tuple(self._checks))
        found = self._diagnosis(self._draws, self._num_steps, readings=False)
        samples = found.states[-1]
        arrived = self._samples(samples)
        fits = found.given.value <= GOOD and not found.is_off and deviation(samples) > COLLAPSED
        proposals = () if fits else tuple(self._proposals(found))
        if not fits and not proposals:
            rows = torch.arange(min(len(self._z), enough_rows(self._teacher.sample_shape)))
            read = self._diagnosis(self._draws.rows(rows), min(self._num_steps, 8), readings=True)
            found = replace(found, calibrations={**read.calibrations, **found.calibrations}, slope=read.slope)
        self._direction(found)
        if arrived:
            self._calibration(found, fits, proposals)
            self._trajectories(found.states)
            self._estimates(samples)
        else:
            self._add("calibration", "error", "cannot be measured: there are no samples")
        self._derivative()
        self._guidance()
        return TeacherReport(tuple(self._checks), proposals, samples)

    def _add(self, name: str, status: Status, detail: str) -> None:
        self._checks.append(Check(name, status, detail))

    def _field(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The unguided velocity of the first len(x_t) samples' conditions."""
        condition = index_condition(self._condition, torch.arange(len(x_t)))
        return self._teacher.velocity(x_t, t.clamp(*self._teacher.time_range), condition)

    def _diagnosis(self, draws: Draws, num_steps: int, *, readings: bool) -> Diagnosis:
        shape, span = tuple(self._teacher.sample_shape), self._teacher.time_range
        return diagnose(self._field, shape, draws, num_steps, time_range=span, readings=readings)

    def _described(self) -> str:
        teacher = self._teacher
        classes = f"{teacher.num_classes} classes" if teacher.num_classes else "no classes"
        low, high = teacher.time_range
        times = f"; asked at t from {low:.4g} to {high:.4g}" if (low, high) != (0.0, 1.0) else ""
        origin = f"{teacher.provenance}; " if teacher.provenance else ""
        return f"{origin}states {tuple(teacher.sample_shape)}, {classes}{times}"

    def _answers(self) -> bool:
        """Finite, like the states, the same twice, and row by row; and what a pass costs."""
        z, num = self._z, len(self._z)
        low, high = self._teacher.time_range
        for t in (high, (low + high) / 2, low):
            v = self._field(z, times(t, z))
            wrong = "holds NaN or infinity" if not bool(torch.isfinite(v).all()) else ""
            if v.shape != z.shape or v.dtype != z.dtype:
                wrong = f"is {describe(v)} for states {describe(z)}; expected the same"
            if wrong:
                self._add("answers", "error", f"the velocity at t = {t:g} {wrong}")
                return False
        middle = times((low + high) / 2, z)
        began = time.perf_counter()
        first = self._field(z, middle)
        milliseconds = 1000 * (time.perf_counter() - began)
        scale = float(first.abs().max()) or 1.0
        again = float((self._field(z, middle) - first).abs().max()) / scale
        alone = float((self._field(z[:1], middle[:1]) - first[:1]).abs().max()) / scale
        dtype = str(z.dtype).removeprefix("torch.")
        cost = f"{milliseconds / num:.3g} ms a sample and pass at batch {num} on {z.device.type}, {dtype}"
        detail = f"finite, and the same twice and alone; {cost}"
        if again > 1e-3:
            detail = f"two equal questions get answers {again:.2g} apart: it draws random numbers"
        elif alone > 1e-2:
            detail = f"a state asked about alone gets an answer {alone:.2g} away from that in a batch: rows are mixed"
        good = again <= 1e-3 and alone <= 1e-2
        self._add("answers", "ok" if good else "error", detail)
        return good

    def _samples(self, x: Tensor) -> bool:
        if not bool(x.abs().max() < _LARGE):  # NaN included
            self._add("samples", "error", f"integration from noise to data in {self._num_steps} steps runs away")
            return False
        detail = (
            f"{len(x)} in {self._num_steps} midpoint steps: mean {float(x.mean()):.3g}, deviation "
            f"{deviation(x):.3g}, from {float(x.min()):.3g} to {float(x.max()):.3g}"
        )
        alike, large = deviation(x) <= COLLAPSED, float(x.square().mean().sqrt()) > 10
        detail += ": they are all alike" if alike else ": much larger than the noise" if large else ""
        self._add("samples", "error" if alike else "warning" if large else "ok", detail)
        return True

    def _direction(self, found: Diagnosis) -> None:
        """At t = 1 the state is the noise, v = z - E[x], of slope 1 on z; close to data v = E[n] - x, of -1 on x."""
        z = self._z
        if len(z) < 2:
            return
        high = min(self._teacher.time_range[1], 1.0)
        slope = noise_slope(self._field(z, times(high, z)), z)
        status: Status = "error" if slope < 0 else "ok" if 0.5 < slope < 2 and not found.is_off else "warning"
        wrong = ": it points to the data, not away" if slope < 0 else ""
        near = f"near its samples {-found.data_slope:.2f} on them, expected -1"
        self._add(
            "direction", status, f"the velocity of pure noise has slope {slope:.2f} on it, expected 1{wrong}; {near}"
        )

    def _calibration(self, found: Diagnosis, fits: bool, proposals: tuple[Proposal, ...]) -> None:
        detail = f"along the path from its own samples to noise it misses {max(found.given.value, 0):.2g} predictably; "
        if fits:
            self._add("calibration", "ok", f"{detail}an exact velocity misses nothing")
        elif found.is_wrong or proposals or deviation(found.states[-1]) <= COLLAPSED:
            reason = f": {found.reason}" if found.reason else ""
            self._add("calibration", "error", f"{detail}so this is not the velocity of its own path{reason}")
        else:
            usual = f"0 to {GOOD:g} is usual; a weak network, guidance built in, or a detail read wrongly"
            self._add("calibration", "warning", detail + usual)

    def _trajectories(self, states: list[Tensor]) -> None:
        """The velocity against central differences of the states it led through, away from the ends."""
        num_steps = len(states) - 1
        errors = []
        for k in range(1, num_steps - 1, max(1, num_steps // _LOOKS)):
            t = 1 - k / num_steps
            difference = (states[k - 1] - states[k + 1]) * (num_steps / 2)
            v = self._field(states[k], times(t, states[k]))
            errors.append(float((v - difference).norm() / difference.norm().clamp_min(1e-12)))
        worst = max(errors, default=0.0)
        detail = f"its velocity and finite differences of its own trajectories are at most {worst:.2g} apart"
        rough = f": more steps than {num_steps}, or a rough field" if worst > 0.5 else ""
        self._add("trajectories", "warning" if rough else "ok", detail + rough)

    def _estimates(self, x: Tensor) -> None:
        """Posterior means are no larger than what they estimate (Jensen)."""
        noise = self._noises[0.5]
        x_t = (x + noise) / 2
        v = self._field(x_t, times(0.5, x_t))
        data, estimated = x_t - v / 2, x_t + v / 2
        rms = [float(part.square().mean().sqrt()) for part in (data, x, estimated, noise)]
        detail = f"at t = 0.5 data {rms[0]:.3g} of {rms[1]:.3g}, noise {rms[2]:.3g} of {rms[3]:.3g}"
        wrong = ": larger than what they estimate" if rms[0] > 1.1 * rms[1] or rms[2] > 1.1 * rms[3] else ""
        self._add("estimates", "warning" if wrong else "ok", detail + wrong)

    def _derivative(self) -> None:
        """In float64 where the network can be turned to it and back."""
        teacher, rows = self._teacher, torch.arange(min(_DERIVATIVE_ROWS, len(self._z)))
        condition = index_condition(self._condition, rows)
        tensors = [tensor for tensor in (*teacher.parameters(), *teacher.buffers()) if tensor.is_floating_point()]
        small = sum(tensor.numel() for tensor in tensors) <= _FEW_WEIGHTS and self._z.device.type != "mps"
        turned = small and all(tensor.dtype is torch.float32 for tensor in tensors)
        x = self._z[: len(rows)].to(torch.float64 if turned else torch.float32)
        t = times(0.5, x)

        def along(x_t: Tensor, t: Tensor) -> Tensor:
            return teacher.velocity(x_t, t, condition)

        try:
            if turned:
                teacher.double()
            error = forward_mode_error(along, (x, t), (along(x, t), torch.ones_like(t)))
        except Exception as problem:  # whatever somebody else's network makes of dual numbers
            reason = f"{type(problem).__name__}: {' '.join(str(problem).split())[:160]}"
            told = f"forward mode fails ({reason}); use derivative=central where it is needed"
            self._add("derivative", "warning", told)
            return
        finally:
            if turned:
                teacher.float()
        told = f"forward mode works; a central difference is {error:.2g} away from it"
        wrong = f", {AGREES:g} expected: use derivative=central where it is needed"
        self._add("derivative", "ok" if error < AGREES else "warning", told + (wrong if error >= AGREES else ""))

    def _guidance(self) -> None:
        if self._condition is None:
            self._add("guidance", "ok", "none: the teacher is unconditional")
            return
        z = self._z
        weight = torch.full((len(z),), 2.0, dtype=torch.float64)
        try:
            guided = self._teacher.guided_velocity(z, times(0.5, z), self._condition, weight)
        except FreeflowError as error:
            self._add("guidance", "ok", f"none: {error}")
            return
        plain = self._field(z, times(0.5, z))
        change = float((guided - plain).norm() / plain.norm().clamp_min(1e-12))
        if not bool(torch.isfinite(guided).all()):
            self._add("guidance", "error", "the guided velocity at weight 2 holds NaN or infinity")
        elif change < 1e-6:
            self._add("guidance", "warning", "weight 2 changes nothing: the null condition acts as the condition does")
        else:
            self._add("guidance", "ok", f"available; weight 2 changes the velocity of noise at t = 0.5 by {change:.2g}")

    def _proposals(self, found: Diagnosis) -> list[Proposal]:
        if not self._search or not isinstance(self._teacher, ConvertibleTeacher):
            return []
        enough = torch.arange(min(len(self._z), enough_rows(self._teacher.sample_shape)))
        fine = Probe(self._draws.rows(enough), index_condition(self._condition, enough), self._num_steps)
        rows = torch.arange(max(2, len(enough) // 4))
        coarse = Probe(self._draws.rows(rows), index_condition(self._condition, rows), self._num_steps)
        given = math.inf if found.is_off else found.given.value
        return propose(self._teacher, given, fine, coarse)
