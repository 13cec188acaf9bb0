"""What a plugin author gets wrong first, looked for once, before the first step, while waiting for the device is cheap.

A run asks its teacher and its student once, on a few rows and without gradient, and judges what comes back.
"""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, final

import torch
from torch import Tensor, nn

from freeflow_core.config import RunConfig
from freeflow_core.engine.build import Components
from freeflow_core.engine.optimizer import copy_buffers
from freeflow_core.engine.process import autocast
from freeflow_core.engine.state import TrainingState
from freeflow_core.errors import FreeflowError, PluginError
from freeflow_core.interfaces import Student, Teacher
from freeflow_core.math import derivative
from freeflow_core.math.calibration import diagnose, enough_rows
from freeflow_core.math.derivative import relative_error
from freeflow_core.math.random import PhiloxDraws
from freeflow_core.plugin.culprit import described, place
from freeflow_core.types import Batch, Condition, Draws, describe, index_condition

_log = logging.getLogger("freeflow")
_ROWS = 4
_DERIVATIVES = derivative.__name__
MIXED = 1e-3
"""Row mixing from which a student is refused."""
PATIENCE = 1_000
"""Steps that a trainable role may go without a loss before a warning."""


@final
@dataclass(frozen=True)
class _Asked:
    """A network of the run: ``who`` it is, in words, and its plugin, where that is known."""

    who: str
    network: nn.Module
    origin: str | None

    @contextmanager
    def about(self, method: str, x: Tensor, t: Tensor, condition: Condition) -> Iterator[None]:
        """Errors of the network's own code, with its name, their place, and what it was given."""
        try:
            yield
        except FreeflowError:
            raise
        except Exception as error:
            where = [place(error, {type(self.network).__module__.partition(".")[0]})]
            where += [f"of the plugin {self.origin}"] if self.origin else []
            raise PluginError(
                f"{self.who} failed in {method}() with {described(error)} ({', '.join(filter(None, where))}). It was "
                f"given states {describe(x)}, times {describe(t)} and the condition {describe(condition)}."
            ) from error


def check_first_step(config: RunConfig, components: Components, batch: Batch, draws: Draws) -> None:
    """Ask the teacher and the student once, on the first rows of the first batch.

    Raises:
        PluginError: a shape, dtype, device, condition, gradient, scale or direction of time that is not what interfaces
            say; the message names the component, what was expected and what came.
    """
    teacher, rows = components.teacher, torch.arange(min(_ROWS, len(draws.index)))
    few = draws.rows(rows)
    if teacher is not None and config.teacher is not None:
        given_by = f"source {config.source.name!r}" if batch.x is not None else f"teacher {config.teacher.name!r}"
        _check_condition(given_by, config.teacher.name, teacher.num_classes, batch.condition, len(draws.index))
    condition = index_condition(batch.condition, rows)
    with torch.random.fork_rng(devices=_cuda_devices(draws.device)), autocast(draws.device, config.runtime.precision):
        if teacher is not None and config.teacher is not None:
            asked = _Asked(f"The teacher {config.teacher.name!r}", teacher, components.origins.get("teacher"))
            _check_teacher(asked, teacher, condition, few, config.runtime.precision)
        asked = _Asked(f"The student {config.student.name!r}", components.student, components.origins.get("student"))
        _check_student(asked, components.student, condition, few, config.runtime.precision)
    if teacher is not None and config.teacher is not None:
        _check_calibration(config.teacher.name, teacher, draws.device, draws.dtype)


def warn_of_idle_roles(objective: str, state: TrainingState) -> list[str]:
    """Warn of trainable roles that no loss has come for so far; their names."""
    idle = [name for name, role in state.roles.items() if role.optimizer is not None and role.updates == 0]
    for name in idle:
        _log.warning(
            f"The objective {objective!r} has returned no loss for its trainable role {name!r} in {state.step:,} "
            "steps, so that its weights are those it started with. Expected one from losses() now and then, or "
            "Role(..., trainable=False)."
        )
    return idle


def _check_condition(given_by: str, teacher: str, classes: int | None, condition: Condition, rows: int) -> None:
    if condition is None:
        if classes is not None:
            raise PluginError(
                f"The teacher {teacher!r} has num_classes={classes}, but the {given_by} gave no condition (None); "
                f"expected labels, int64 ({rows},), from sample_condition(draws), such as "
                "draws.integers('label', self.num_classes)."
            )
        return
    for name, part in condition.items() if isinstance(condition, dict) else (("", condition),):
        what = f" {name!r}" if name else ""
        if not isinstance(part, Tensor) or part.ndim == 0 or len(part) != rows:
            raise PluginError(
                f"The {given_by} gave a condition{what} of {describe(part)}; expected one row for each of {rows} "
                "samples."
            )
    if classes is not None and isinstance(condition, Tensor) and not condition.is_floating_point():
        low, high = int(condition.min()), int(condition.max())
        if low < 0 or high > classes:  # the null class is one past the last
            raise PluginError(
                f"The {given_by} gave labels from {low} to {high}; the teacher {teacher!r} has num_classes={classes}, "
                f"so expected 0 to {classes - 1}."
            )


def _check_teacher(asked: _Asked, teacher: Teacher, condition: Condition, draws: Draws, precision: str) -> None:
    x = draws.noise("first-step", tuple(teacher.sample_shape))
    low, high = teacher.time_range
    t = torch.linspace(low, high, len(x), dtype=torch.float64).to(x)
    with asked.about("velocity", x, t, condition):
        v = teacher.velocity(x, t, condition)
    _check_states(asked.who, "velocity", v, x, precision)
    if v.requires_grad:
        raise PluginError(
            f"{asked.who} gave velocities with a gradient; expected none, for a teacher is never trained. Its "
            "parameters are frozen by the engine: keep other tensors as buffers, and detach what autograd computes "
            "inside."
        )


def _check_student(asked: _Asked, student: Student, condition: Condition, draws: Draws, precision: str) -> None:
    """Asked as training asks it, its layers in training mode."""
    x = draws.noise("first-step", tuple(student.sample_shape))
    t = torch.linspace(0.5, 1.0, len(x), dtype=torch.float64).to(x)
    others = (t, t / 2, condition, torch.ones_like(t))
    with _undisturbed(student), asked.about("forward and jump", x, t, condition):
        jumped = student.flow_map(x, *others)
    _check_states(asked.who, "jump", jumped, x, precision)
    mixed = row_mixing(student, x, *others)
    if mixed > MIXED:
        raise PluginError(
            f"{asked.who} mixes the rows of a batch in training: its jump of one sample changed by {mixed:.2g} of its "
            "size when the samples beside it did; expected each row's answer to depend on its own state, times and "
            "condition alone. Normalise within a sample (GroupNorm, LayerNorm), or by fixed statistics."
        )


def row_mixing(student: Student, x: Tensor, *others: Any) -> float:
    """How much the jump of the first of the states ``x`` (N, *D) changes with the others, relative to its size.

    Its layers are in the mode they are in. Weights that are zero, as new output layers are, would hide it; they are
    not zero meanwhile.
    """
    with _undisturbed(student):
        zeros = [p for p in student.parameters() if not bool(p.any())]
        for p in zeros:
            p.normal_(0, 0.02)
        jumps = []
        for states in (x, torch.cat([x[:1], -2 * x[1:]])):
            torch.manual_seed(0)  # the same dropout
            jumps.append(student.flow_map(states, *others)[0].double())
        for p in zeros:
            p.zero_()
    return float(relative_error(jumps[1] - x[0], jumps[0] - x[0]))


@contextmanager
def _undisturbed(student: Student) -> Iterator[None]:
    """No gradient, and neither statistics nor random generators that remember the rows asked about."""
    kept, device = [buffer.clone() for buffer in student.buffers()], next(student.parameters()).device
    with torch.no_grad(), torch.random.fork_rng(devices=_cuda_devices(device)):
        yield
    copy_buffers(list(student.buffers()), kept)


def _check_states(who: str, method: str, found: object, x: Tensor, precision: str) -> None:
    """Shape, device, dtype and finiteness of what a network gave for states ``x``."""
    expected = f"expected {describe(x)}, as the states it was given"
    if not isinstance(found, Tensor) or found.shape != x.shape:
        raise PluginError(f"{who} gave {describe(found)} from {method}(); {expected}.")
    if found.device != x.device:
        raise PluginError(
            f"{who} gave {describe(found)} from {method}(); {expected}. Register tensors as parameters or buffers, so "
            "that they move with the network, and make new ones on x_t's device."
        )
    if found.dtype != x.dtype and precision != "bf16":  # autocast's results are cast where they are used
        raise PluginError(
            f"{who} gave {describe(found)} from {method}(); {expected}. Cast constants and times with .to(x_t), as "
            "freeflow_core.math.flow.expand_times does; runtime.precision sets the precision."
        )
    if not bool(torch.isfinite(found).all()):
        raise PluginError(f"{who} gave NaN or infinity from {method}() for states of unit size; expected numbers.")


def _check_calibration(name: str, teacher: Teacher, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a field that is certainly read wrongly, and warn of one that is not the velocity of its own path."""
    shape = tuple(teacher.sample_shape)
    draws = PhiloxDraws(0, torch.arange(enough_rows(shape)), device=device, dtype=dtype)
    try:
        condition = teacher.sample_condition(draws)
    except FreeflowError:
        return  # conditions come with the data, so that there are none to integrate with
    found = diagnose(lambda x, t: teacher.velocity(x, t, condition), shape, draws, time_range=teacher.time_range)
    said = (
        f"The teacher {name!r}: expected a velocity dx/dt with t = 0 data and t = 1 noise; what came does not explain "
        f"the path of its own samples ({found.measured})"
    )
    if found.reason:
        raise PluginError(f"{said}, and {found.reason}.")
    if found.is_wrong:
        _log.warning(
            f"{said}. Look at the scale of its states and times and at what it predicts, with `freeflow teacher "
            "check`; weights that are hardly trained, and guidance built into the network, show like this too."
        )


@contextmanager
def watched(teacher: Teacher | None, networks: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    """What inside gave NaN or infinity, in order: the teacher, the network of a role, a derivative.

    By Python's own hook for returning functions, so that a step need not know of it; slow, for one step that failed.
    """
    found: list[str] = []
    names = {id(network): f"the network of {name}" for name, network in networks.items()}
    if teacher is not None:
        names[id(teacher)] = "the teacher"

    def returned(frame: FrameType, event: str, value: object) -> None:
        if event != "return" or value is None:
            return
        function = frame.f_code.co_name
        if function in ("forward", "velocity", "guided_velocity"):
            what = names.get(id(frame.f_locals.get("self")))
        else:
            is_derivative = frame.f_globals.get("__name__") == _DERIVATIVES and not function.startswith("_")
            what = "the derivative" if is_derivative else None
        if what is not None and not _is_finite(value):
            found.append(what)

    before = sys.getprofile()
    sys.setprofile(returned)
    try:
        yield found
    finally:
        sys.setprofile(before)


def _is_finite(value: object) -> bool:
    if isinstance(value, Tensor):
        try:
            return bool(torch.isfinite(value).all())
        except RuntimeError:  # a tensor inside a transformation that has no value to look at
            return True
    return all(_is_finite(part) for part in value) if isinstance(value, tuple) else True


def _cuda_devices(device: torch.device) -> list[int]:
    return [device.index or 0] if device.type == "cuda" else []
