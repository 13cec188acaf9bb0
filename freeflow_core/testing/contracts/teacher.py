"""What a teacher promises."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Teacher
from freeflow_core.math.calibration import GOOD, diagnose, enough_rows
from freeflow_core.math.derivative import DerivativeMethod, directional_derivative
from freeflow_core.testing.contracts.base import ComponentContract
from freeflow_core.testing.contracts.tensors import (
    draws_of,
    relative_difference,
    rows_of,
    same_condition,
    watched_random_state,
)
from freeflow_core.tools.cost.fake import FakeTensors
from freeflow_core.types import Condition, concatenate_conditions, describe, index_condition

_ROWS = 6
_SMALL, _LARGE = 100_000, 50_000_000
_CONVENTION = "freeflow's times run from t = 0 (data) to t = 1 (noise), and v = dx/dt points from data to noise."


class TeacherContract(ComponentContract):
    """Checks of a teacher.

    Attributes:
        trained: False for random weights: then there is no direction of time to check, and the class may not matter.
    """

    kind: ClassVar[str] = "teacher"
    trained: ClassVar[bool] = True

    # -- What it says of itself -----------------------------------------------------------------------------------

    def test_declares_its_states(self) -> None:
        """``sample_shape``, ``time_range`` and ``num_classes`` are there and make sense."""
        teacher = self.teacher()
        shape = getattr(teacher, "sample_shape", None)
        good = isinstance(shape, tuple) and len(shape) > 0 and all(isinstance(d, int) and d > 0 for d in shape)
        self.expect(good, "sample_shape, a tuple of the dimensions of one state", repr(shape))
        low, high = teacher.time_range
        self.expect(0 <= low < high <= 1, "a time_range (low, high) within [0, 1]", repr(teacher.time_range))
        classes = teacher.num_classes
        self.expect(classes is None or classes >= 1, "num_classes: a number from 1 on, or None", repr(classes))

    def test_arrives_frozen(self) -> None:
        """The engine freezes it: no parameter wants a gradient, and none gets one back by itself."""
        teacher = self.teacher()
        x, t, condition = self.inputs(teacher)
        v = teacher.velocity(x.requires_grad_(False), t, condition)
        wanting = [name for name, p in teacher.named_parameters() if p.requires_grad]
        self.expect(
            not wanting and not v.requires_grad,
            "a velocity without gradient from a frozen teacher",
            f"a gradient, through {', '.join(wanting) or 'tensors that are no parameters'}",
            "A teacher is never trained: register its weights as parameters or buffers, and leave requires_grad alone.",
        )

    # -- Shapes, precision, rows ----------------------------------------------------------------------------------

    def test_velocity_has_the_shape_of_the_states(self) -> None:
        """(N, *D) for N = 6 and N = 1."""
        teacher = self.teacher()
        for rows in (_ROWS, 1):
            x, t, condition = self.inputs(teacher, rows=rows)
            v = teacher.velocity(x, t, condition)
            self.expect(
                isinstance(v, Tensor) and v.shape == x.shape, f"a velocity of shape {tuple(x.shape)}", describe(v)
            )

    def test_velocity_is_finite_at_all_times(self) -> None:
        """At both ends of ``time_range`` and between."""
        teacher = self.teacher()
        x, _, condition = self.inputs(teacher)
        low, high = teacher.time_range
        for time in (low, low + 1e-3 * (high - low), (low + high) / 2, high):
            v = teacher.velocity(x, torch.full((len(x),), time), condition)
            finite = bool(torch.isfinite(v).all())
            self.expect(
                finite,
                f"a finite velocity at t = {time:g}",
                f"NaN or infinity in {int((~torch.isfinite(v)).flatten(1).any(1).sum())} of {len(x)} rows",
                "Rewrite what divides by zero there, or declare a narrower time_range.",
            )

    def test_float64_in_float64_out(self) -> None:
        """A float64 teacher computes in float64: exact checks rely on it."""
        teacher = self.teacher().double()
        x, t, condition = self.inputs(teacher, dtype=torch.float64)
        v = teacher.velocity(x, t, condition)
        self.expect(
            v.dtype is torch.float64,
            "float64 velocities for float64 states",
            describe(v),
            "Do not name a dtype in velocity(); make new tensors with like-functions or .to(x_t).",
        )
        x32, t32 = x.float(), t.float()
        coarse = teacher.float().velocity(x32, t32, condition)
        exact = teacher.double().velocity(x32.double(), t32.double(), condition)
        error = relative_difference(coarse, exact)
        self.expect(
            error < 1e-2, "float32 and float64 velocities that agree to 1 %", f"a relative difference of {error:.2g}"
        )

    def test_float32_in_float32_out(self) -> None:
        """No silent promotion: a float64 time or buffer would make every pass of the step float64."""
        teacher = self.teacher()
        x, t, condition = self.inputs(teacher)
        v = teacher.velocity(x, t, condition)
        self.expect(
            v.dtype is torch.float32,
            "float32 velocities for float32 states",
            describe(v),
            "Cast constants and times with .to(x_t); freeflow_core.math.flow.expand_times does so for times.",
        )

    def test_works_under_bf16_autocast(self) -> None:
        """As with ``runtime.precision=bf16``."""
        teacher = self.teacher()
        x, t, condition = self.inputs(teacher)
        with torch.no_grad(), torch.autocast(x.device.type, dtype=torch.bfloat16):
            v = teacher.velocity(x, t, condition)
        self.expect(
            v.shape == x.shape and bool(torch.isfinite(v).all()),
            f"finite velocities {tuple(x.shape)} under bf16 autocast",
            describe(v),
        )

    def test_velocity_is_deterministic(self) -> None:
        """Same input, same output, bit for bit; torch's global generator is not used."""
        teacher = self.teacher()
        x, t, condition = self.inputs(teacher)
        with watched_random_state() as used:
            first, second = teacher.velocity(x, t, condition), teacher.velocity(x, t, condition)
        self.expect(
            torch.equal(first, second) and not used[0],
            "the same velocity for the same input, without torch's global random numbers",
            "global random numbers drawn" if used[0] else "two answers",
            "Dropout and the like belong off: the engine calls eval().",
        )

    def test_inputs_are_left_alone(self) -> None:
        """States and times are not written to."""
        teacher = self.teacher()
        x, t, condition = self.inputs(teacher)
        kept_x, kept_t = x.clone(), t.clone()
        teacher.velocity(x, t, condition)
        self.expect(
            torch.equal(x, kept_x) and torch.equal(t, kept_t),
            "states and times as they were after velocity()",
            "changed ones",
            "Do not use in-place operations on the arguments.",
        )

    def test_rows_do_not_depend_on_each_other(self) -> None:
        """Row i, with its own time, is the same whatever stands beside it."""
        teacher = self.teacher().double()
        x, t, condition = self.inputs(teacher, dtype=torch.float64)
        rows = torch.tensor([4, 1])
        together = teacher.velocity(x, t, condition)[rows]
        alone = teacher.velocity(x[rows], t[rows], index_condition(condition, rows))
        error = relative_difference(together, alone)
        self.expect(
            error < 1e-6,
            "each row's velocity to depend on its own state, time and condition alone",
            f"a relative difference of {error:.2g} between rows in a batch of {len(x)} and the same rows by themselves",
            "Times are (N,), one a row; no statistics over the batch.",
        )

    # -- Conditions and guidance ----------------------------------------------------------------------------------

    def test_conditions_fit(self) -> None:
        """``sample_condition`` and ``balanced_condition`` give N rows that can be chosen from and joined."""
        teacher = self.teacher()
        draws = draws_of(32)
        with watched_random_state() as used:
            drawn, again = teacher.sample_condition(draws), teacher.sample_condition(draws)
        self.expect(
            same_condition(drawn, again) and not used[0],
            "sample_condition(draws) to depend on its draws alone",
            "another condition the second time" if not used[0] else "use of torch's global generator",
            "Use draws.integers('label', num_classes).",
        )
        for name, condition in (
            ("sample_condition", drawn),
            ("balanced_condition", teacher.balanced_condition(torch.arange(32))),
        ):
            self.expect(
                rows_of(condition) in (None, 32), f"32 rows, or None, from {name} of 32 samples", describe(condition)
            )
            both = concatenate_conditions(index_condition(condition, torch.tensor([1, 3])), condition)
            self.expect(rows_of(both) in (None, 34), f"{name} of which rows can be chosen and joined", describe(both))
        self.expect(
            (teacher.num_classes is None) or isinstance(drawn, (Tensor, dict)),
            f"labels from sample_condition of a teacher with {teacher.num_classes} classes",
            describe(drawn),
            "Return draws.integers('label', self.num_classes).",
        )

    def test_labels_are_in_range(self) -> None:
        """0 to ``num_classes - 1``, and all of them in turn from ``balanced_condition``."""
        teacher = self.teacher()
        if teacher.num_classes is None:
            self.skip("it has no classes")
        classes = int(teacher.num_classes or 0)
        rows = min(4 * classes, 4_096)
        for name, labels in (
            ("sample_condition", teacher.sample_condition(draws_of(rows))),
            ("balanced_condition", teacher.balanced_condition(torch.arange(rows))),
        ):
            if not isinstance(labels, Tensor):
                self.skip("its condition is not a tensor of labels")
            assert isinstance(labels, Tensor)
            low, high = int(labels.min()), int(labels.max())
            self.expect(
                labels.dtype is torch.int64 and low >= 0 and high < classes,
                f"int64 labels from 0 to {classes - 1} from {name}",
                f"{labels.dtype} from {low} to {high}",
                "The null class is what null_condition returns, never one of these.",
            )
        assert isinstance(labels, Tensor)
        counts = torch.bincount(labels, minlength=classes)
        balanced = rows < classes or int(counts.max() - counts.min()) <= 1
        self.expect(balanced, "every class equally often from balanced_condition", f"counts {counts.tolist()[:20]}")

    def test_the_condition_matters(self) -> None:
        """A teacher with classes has another velocity for another class."""
        teacher = self.teacher()
        if teacher.num_classes is None or teacher.num_classes < 2 or not self.trained:
            self.skip("it has no classes to tell apart" if self.trained else "its weights are random")
        x, t, condition = self.inputs(teacher)
        if not isinstance(condition, Tensor):
            self.skip("its condition is not a tensor of labels")
        assert isinstance(condition, Tensor)
        other = (condition + 1) % int(teacher.num_classes or 1)
        same = torch.equal(teacher.velocity(x, t, condition), teacher.velocity(x, t, other))
        self.expect(not same, "velocities that depend on the class", "the same velocity for every class")

    def test_guidance_at_weight_one_is_the_plain_velocity(self) -> None:
        """And rows of weight 1 cost no unconditional pass."""
        teacher = self.teacher()
        x, t, condition = self.inputs(teacher)
        counted, undo = _count_rows(teacher)
        v = teacher.guided_velocity(x, t, condition, torch.ones(len(x)))
        undo()
        plain = teacher.velocity(x, t, condition)
        error = relative_difference(v, plain)
        self.expect(error < 1e-5, "guided_velocity at weight 1 to be velocity", f"a relative difference of {error:.2g}")
        self.expect(
            sum(counted) <= len(x),
            f"{len(x)} rows through velocity() at weight 1, which needs no unconditional half",
            f"{sum(counted)} rows",
        )

    def test_guidance_rule(self) -> None:
        """v_null + w (v - v_null) in the rows whose weight is not 1, or a ``ConfigError`` that guidance cannot be had.

        A teacher that overrides ``guided_velocity`` has a rule of its own; there only rows of weight 1 are compared.
        """
        teacher = self.teacher().double()
        x, t, condition = self.inputs(teacher, dtype=torch.float64)
        weight = torch.tensor([1.0, 2.5, 0.0, 1.0, 4.0, 1.0], dtype=torch.float64)
        guided_rows = (weight != 1).nonzero().flatten()
        plain_rows = (weight == 1).nonzero().flatten()
        own_rule = type(teacher).guided_velocity is not Teacher.guided_velocity
        null: Condition = None
        if not own_rule:
            try:
                null = teacher.null_condition(condition)
            except ConfigError:
                self.skip("it says by a ConfigError that it cannot be guided")
            self.expect(
                rows_of(null) == rows_of(condition),
                "null_condition with as many rows as the condition, or a ConfigError",
                describe(null),
            )
        counted, undo = _count_rows(teacher)
        guided = teacher.guided_velocity(x, t, condition, weight)
        undo()
        plain = teacher.velocity(x, t, condition)
        error = relative_difference(guided[plain_rows], plain[plain_rows])
        self.expect(
            error < 1e-6, "rows of weight 1 to keep their plain velocity", f"a relative difference of {error:.2g}"
        )
        if own_rule:
            return
        baseline = teacher.velocity(x, t, null)
        expected = plain.clone()
        for row in guided_rows.tolist():
            expected[row] = baseline[row] + weight[row] * (plain[row] - baseline[row])
        if teacher.guidance_channels is not None:
            expected[:, teacher.guidance_channels :] = plain[:, teacher.guidance_channels :]
        error = relative_difference(guided, expected)
        self.expect(
            error < 1e-6,
            "v_null + w (v - v_null) from guided_velocity",
            f"a relative difference of {error:.2g}",
            "Leave guided_velocity as the base class has it, unless the teacher is guided by something else.",
        )
        most = len(x) + len(guided_rows)
        self.expect(
            sum(counted) <= most,
            f"at most {most} rows through velocity(): the unconditional half of guided rows alone",
            f"{sum(counted)} rows",
        )

    # -- Time and derivatives -------------------------------------------------------------------------------------

    def test_time_and_sign_run_from_data_to_noise(self) -> None:
        """The field is the velocity of its own path, with t = 0 data and t = 1 noise (see ``math.calibration``)."""
        if not self.trained:
            self.skip("its weights are random, so it has no direction of time")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        teacher = self.teacher(device)
        size = sum(p.numel() for p in teacher.parameters())
        if size > _LARGE and device == "cpu":
            self.skip(f"{size:,} weights are too many to integrate on a CPU; run this check on a GPU")
        draws = draws_of(enough_rows(teacher.sample_shape), device=device)
        condition = teacher.sample_condition(draws)

        def field(x_t: Tensor, t: Tensor) -> Tensor:
            return teacher.velocity(x_t, t.clamp(*teacher.time_range), condition)

        found = diagnose(field, tuple(teacher.sample_shape), draws, num_steps=16)
        reason = f": {found.reason}" if found.reason else ""
        self.expect(
            not found.is_wrong,
            f"a velocity field that explains the path of its own samples (miscalibration up to {GOOD:g})",
            f"a miscalibration of {found.given.value:.2g}{reason}",
            _CONVENTION,
        )

    def test_forward_mode_agrees_with_differences(self) -> None:
        """The derivative along a trajectory, dv/dt + (v . grad) v, exactly and by central differences in float64."""
        teacher = self.teacher().double()
        x, t, condition = self.inputs(teacher, dtype=torch.float64)
        t = t.clamp(0.1, 0.9)
        v = teacher.velocity(x, t, condition)

        def derivative(method: DerivativeMethod, step: float) -> Tensor:
            tangents = (v, torch.ones_like(t))
            return directional_derivative(
                lambda x, t: teacher.velocity(x, t, condition), (x, t), tangents, method=method, step=step
            )

        exact = derivative(DerivativeMethod.FORWARD_MODE, 0.0)
        error = relative_difference(exact, derivative(DerivativeMethod.CENTRAL, 1e-5))
        limit = 1e-3
        if error >= limit:  # a network may embed its times in float32, which takes a wider step
            error, limit = relative_difference(exact, derivative(DerivativeMethod.CENTRAL, 1e-4)), 5e-3
        self.expect(
            error < limit,
            "a forward-mode derivative that agrees with central differences",
            f"a relative difference of {error:.2g}",
            "Do not detach, round or rebuild states and times from numbers inside velocity().",
        )

    # -- Devices --------------------------------------------------------------------------------------------------

    def test_runs_on_cuda(self) -> None:
        """On the GPU, where there is one, with the same result."""
        self.need_cuda()
        x, t, condition = self.inputs(here := self.teacher())
        there = self.teacher("cuda")
        v = there.velocity(x.cuda(), t.cuda(), condition)
        self.expect(v.device.type == "cuda", "velocities on the states' device", describe(v))
        error = relative_difference(v.cpu(), here.velocity(x, t, condition))
        self.expect(error < 2e-2, "the same velocities on both devices", f"a relative difference of {error:.2g}")

    def test_cost_can_be_estimated(self) -> None:
        """``--dry-run`` runs it on tensors without memory."""
        teacher = self.teacher()
        x, t, condition = self.inputs(teacher)
        fake = FakeTensors("cpu")
        fake.convert(teacher)
        with torch.no_grad(), fake.active():
            v = teacher.velocity(torch.empty_like(x), t, condition)
        self.expect(v.shape == x.shape, f"a velocity of shape {tuple(x.shape)} without weights", describe(v))

    # -- Helpers --------------------------------------------------------------------------------------------------

    def teacher(self, device: str = "cpu") -> Teacher:
        """The teacher as the engine holds it: float32, frozen, in evaluation mode."""
        return self.builder(device).teacher(self._choice()).float()

    def inputs(
        self, teacher: Teacher, *, rows: int = _ROWS, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> tuple[Tensor, Tensor, Condition]:
        """States (N, *D) of unit size, times (N,) spread over ``time_range``, conditions."""
        draws = draws_of(rows, dtype, device)
        low, high = teacher.time_range
        t = (low + (high - low) * draws.uniform("t")).to(device=device, dtype=dtype)
        return draws.noise("x", tuple(teacher.sample_shape)), t, teacher.sample_condition(draws)


def _count_rows(teacher: Teacher) -> tuple[list[int], Any]:
    """Rows of each call of ``velocity`` from now on, and what undoes the counting."""
    counted: list[int] = []
    velocity = teacher.velocity

    def counting(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        counted.append(len(x_t))
        return velocity(x_t, t, condition)

    vars(teacher)["velocity"] = counting  # shadows the method meanwhile
    return counted, lambda: vars(teacher).pop("velocity")
