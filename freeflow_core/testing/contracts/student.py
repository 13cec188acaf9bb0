"""What a student promises."""

from __future__ import annotations

import copy
import json
from typing import ClassVar

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError, FreeflowError
from freeflow_core.interfaces import AverageVelocityStudent, Student, Teacher
from freeflow_core.math.derivative import DerivativeMethod, directional_derivative
from freeflow_core.math.flow import expand_times
from freeflow_core.testing.contracts.surroundings import WithTeacher
from freeflow_core.testing.contracts.tensors import draws_of, relative_difference, watched_random_state
from freeflow_core.tools.cost.fake import FakeTensors
from freeflow_core.types import Condition, describe, index_condition

_ROWS = 6

Inputs = tuple[Tensor, Tensor, Tensor, Condition, Tensor]
"""x_t (N, *D), t (N,), s (N,), condition, guidance (N,)."""


class StudentContract(WithTeacher):
    """Checks of a student, built beside a small teacher of freeflow's own unless ``teacher`` names another."""

    kind: ClassVar[str] = "student"

    def test_builds_from_its_configuration(self) -> None:
        """Beside a teacher whose states it takes."""
        self.student()

    def test_declares_its_states(self) -> None:
        """``sample_shape`` and ``num_classes`` are there and make sense."""
        student = self.student()
        shape = getattr(student, "sample_shape", None)
        good = isinstance(shape, tuple) and len(shape) > 0 and all(isinstance(d, int) and d > 0 for d in shape)
        self.expect(good, "sample_shape, a tuple of the dimensions of one state", repr(shape))
        classes = student.num_classes
        self.expect(classes is None or classes >= 1, "num_classes: a number from 1 on, or None", repr(classes))

    # -- Shapes, precision, rows ----------------------------------------------------------------------------------

    def test_jump_has_the_shape_of_the_states(self) -> None:
        """(N, *D) for N = 6 and N = 1, with guidance weights and without."""
        student = self.student()
        for rows in (_ROWS, 1):
            x, t, s, condition, guidance = self.inputs(student, rows=rows)
            for weight in (guidance, None):
                jumped = student.flow_map(x, t, s, condition, weight)
                self.expect(
                    isinstance(jumped, Tensor) and jumped.shape == x.shape and bool(torch.isfinite(jumped).all()),
                    f"finite x_s of shape {tuple(x.shape)} (guidance {'None' if weight is None else 'given'})",
                    describe(jumped),
                )

    def test_float64_in_float64_out(self) -> None:
        """A float64 student computes in float64."""
        student = self.student().double()
        jumped = student.flow_map(*self.inputs(student, dtype=torch.float64))
        self.expect(
            jumped.dtype is torch.float64,
            "float64 states from float64 states",
            describe(jumped),
            "Do not name a dtype in forward() or jump().",
        )

    def test_float32_in_float32_out(self) -> None:
        """No silent promotion."""
        student = self.student()
        jumped = student.flow_map(*self.inputs(student))
        self.expect(
            jumped.dtype is torch.float32,
            "float32 states from float32 states",
            describe(jumped),
            "Cast constants and times with .to(x_t); freeflow_core.math.flow.expand_times does so for times.",
        )

    def test_works_under_bf16_autocast(self) -> None:
        """As with ``runtime.precision=bf16``."""
        student = self.student()
        inputs = self.inputs(student)
        with torch.no_grad(), torch.autocast(inputs[0].device.type, dtype=torch.bfloat16):
            jumped = student.flow_map(*inputs)
        self.expect(
            jumped.shape == inputs[0].shape and bool(torch.isfinite(jumped).all()),
            f"finite states {tuple(inputs[0].shape)} under bf16 autocast",
            describe(jumped),
        )

    def test_forward_is_deterministic(self) -> None:
        """In evaluation mode: same input, same output, bit for bit, without torch's global generator."""
        student = self.student().eval()
        inputs = self.inputs(student)
        with watched_random_state() as used:
            first, second = student(*inputs), student(*inputs)
        self.expect(
            torch.equal(first, second) and not used[0],
            "the same output for the same input in evaluation mode",
            "global random numbers drawn" if used[0] else "two answers",
        )

    def test_rows_do_not_depend_on_each_other(self) -> None:
        """Row i, with its own times, is the same whatever stands beside it."""
        student = self.student().double().eval()
        x, t, s, condition, guidance = self.inputs(student, dtype=torch.float64)
        rows = torch.tensor([4, 1])
        together = student.flow_map(x, t, s, condition, guidance)[rows]
        alone = student.flow_map(x[rows], t[rows], s[rows], index_condition(condition, rows), guidance[rows])
        error = relative_difference(together, alone)
        self.expect(
            error < 1e-6,
            "each row's jump to depend on its own state, times and condition alone",
            f"a relative difference of {error:.2g} between rows in a batch of {len(x)} and the same rows by themselves",
            "Times are (N,), one a row; no statistics over the batch, so no BatchNorm.",
        )

    # -- The jump -------------------------------------------------------------------------------------------------

    def test_a_jump_of_no_length_stays(self) -> None:
        """X(x, t, t) = x."""
        student = self.student().double().eval()
        x, t, _, condition, guidance = self.inputs(student, dtype=torch.float64)
        error = relative_difference(student.flow_map(x, t, t, condition, guidance), x)
        self.expect(
            error < 1e-6,
            "X(x, t, t) = x",
            f"a relative difference of {error:.2g}",
            "For an average velocity, return freeflow_core.math.flow.average_velocity_jump(x_t, u, t, s).",
        )

    def test_the_jump_follows_the_average_velocity(self) -> None:
        """x_s = x_t - (t - s) u: a step towards the data subtracts the velocity."""
        student = self.student().double().eval()
        if not isinstance(student, AverageVelocityStudent):
            self.skip("it predicts no average velocity")
        assert isinstance(student, AverageVelocityStudent)
        x, t, s, condition, guidance = self.inputs(student, dtype=torch.float64)
        output = student(x, t, s, condition, guidance)
        u = student.average_velocity(output, x, t, s)
        expected = x - expand_times(t - s, x) * u
        error = relative_difference(student.jump(output, x, t, s), expected)
        wrong_way = relative_difference(student.jump(output, x, t, s), 2 * x - expected)
        self.expect(
            error < 1e-6,
            "x_s = x_t - (t - s) u, with s <= t and t = 1 the noise",
            "x_t + (t - s) u, a jump with the wrong sign" if wrong_way < 1e-6 else f"a difference of {error:.2g}",
            "Return freeflow_core.math.flow.average_velocity_jump(x_t, u, t, s).",
        )

    def test_only_forward_holds_gradients(self) -> None:
        """``jump`` and ``average_velocity`` are pure functions of forward's output: wrappers see forward alone."""
        student = self.student()
        x, t, s, condition, guidance = self.inputs(student)
        output = student(x, t, s, condition, guidance).detach()
        parts = {"jump": student.jump(output, x, t, s)}
        if isinstance(student, AverageVelocityStudent):
            parts["average_velocity"] = student.average_velocity(output, x, t, s)
        for name, value in parts.items():
            self.expect(
                not value.requires_grad,
                f"{name}() to be a function of forward's output without weights of its own",
                "a gradient that does not pass through forward()",
                "Distributed training would never synchronise it: move the layers into forward().",
            )

    def test_gradients_are_finite(self) -> None:
        """A squared error of the jump gives some weight a gradient, and none a NaN."""
        student = self.student().train()
        inputs = self.inputs(student)
        (
            student.flow_map(*inputs) - draws_of(_ROWS).noise("target", tuple(student.sample_shape))
        ).square().mean().backward()  # type: ignore[no-untyped-call]
        gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
        bad = [name for name, grad in gradients.items() if not bool(torch.isfinite(grad).all())]
        moved = any(bool((grad != 0).any()) for grad in gradients.values())
        self.expect(not bad, "finite gradients of every weight", f"NaN or infinity in {', '.join(bad[:5])}")
        self.expect(moved, "a gradient of some weight", "none: forward() detaches it, or runs under no_grad")

    # -- Derivatives ----------------------------------------------------------------------------------------------

    def test_time_derivatives_agree_with_differences(self) -> None:
        """du/dt along the path and du/ds, by forward mode and by central differences in float64."""
        student = self.student().double().eval()
        if not isinstance(student, AverageVelocityStudent):
            self.skip("it predicts no average velocity")
        assert isinstance(student, AverageVelocityStudent)
        x, t, s, condition, guidance = self.inputs(student, dtype=torch.float64)
        direction = draws_of(len(x), torch.float64).noise("direction", tuple(student.sample_shape))
        zero, one = torch.zeros_like(t), torch.ones_like(t)

        def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return student.average_velocity(student(x, t, s, condition, guidance), x, t, s)

        for name, tangents in (("du/dt", (direction, one, zero)), ("du/ds", (0 * direction, zero, one))):
            exact, central = (
                directional_derivative(u, (x, t, s), tangents, method=method, step=1e-5)
                for method in (DerivativeMethod.FORWARD_MODE, DerivativeMethod.CENTRAL)
            )
            error = float((exact - central).norm() / (central.norm() + 1e-3 * u(x, t, s).norm()).clamp_min(1e-12))
            self.expect(
                error < 1e-3,
                f"{name} by forward mode to agree with central differences",
                f"a relative difference of {error:.2g}",
                "Do not detach, round or rebuild times from numbers inside forward().",
            )

    # -- Weights --------------------------------------------------------------------------------------------------

    def test_says_what_it_took_from_the_teacher(self) -> None:
        """``load_teacher`` accounts for every parameter as taken or new, and leaves the teacher as it was."""
        student, teacher = self._pair()
        if teacher is None or tuple(teacher.sample_shape) != tuple(student.sample_shape):
            self.skip("no teacher of freeflow's own has its states; name one with `teacher`")
        assert teacher is not None
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        report = student.load_teacher(teacher)
        told = {*report.taken, *report.new}
        silent = {  # a report may name the parts of a wrapped network as that network does
            name
            for name, _ in student.named_parameters()
            if name not in told and not any(name.endswith(f".{known}") for known in told)
        }
        self.expect(
            not silent,
            "a LoadReport that names every parameter as taken or new",
            f"none of {', '.join(sorted(silent)[:5])}",
        )
        changed = [name for name, value in teacher.state_dict().items() if not torch.equal(value, before[name])]
        self.expect(not changed, "a teacher left as it was", f"changed {', '.join(changed[:5])}")

    def test_comes_back_from_its_file(self) -> None:
        """``from_state(network_state())`` jumps bit for bit as before; what is not a tensor is plain JSON."""
        student = self.student().eval()
        state = student.network_state()
        try:
            config = json.loads(json.dumps(dict(state.config)))
        except TypeError as error:
            self.fail("a NetworkState.config of JSON values", str(error))
        copies = {name: value.detach().clone() for name, value in state.tensors.items()}
        again = type(student).from_state(type(state)(state.family, config, copies)).eval()
        inputs = self.inputs(student)
        self.expect(
            torch.equal(student.flow_map(*inputs), again.to(inputs[0].dtype).flow_map(*inputs)),
            "the same jumps from the student that from_state rebuilds",
            "other jumps",
            "network_state must hold every weight and buffer, and in `config` what the constructor needs.",
        )

    def test_can_be_copied(self) -> None:
        """The engine averages a deep copy, and objectives copy it for their roles."""
        student = self.student().eval()
        inputs = self.inputs(student)
        same = torch.equal(student.flow_map(*inputs), copy.deepcopy(student).flow_map(*inputs))
        self.expect(same, "the same jumps from copy.deepcopy(student)", "other jumps")

    def test_recomputed_activations_change_no_gradient(self) -> None:
        """``runtime.activation_checkpointing``, or a ``ConfigError`` that says it cannot."""
        student = self.student().train()
        again = copy.deepcopy(student)
        try:
            again.enable_activation_checkpointing()
        except ConfigError:
            self.skip("it says by a ConfigError that it cannot recompute its activations")
        found = []
        for network in (student, again):
            network.flow_map(*self.inputs(network)).square().mean().backward()  # type: ignore[no-untyped-call]
            found.append([p.grad for p in network.parameters() if p.grad is not None])
        errors = [relative_difference(a, b) for a, b in zip(*found, strict=False)]
        self.expect(
            len(found[0]) == len(found[1]) and max(errors, default=0) < 1e-5,
            "the same gradients with recomputed activations",
            f"a relative difference of {max(errors, default=1):.2g}",
        )

    # -- Devices --------------------------------------------------------------------------------------------------

    def test_runs_on_cuda(self) -> None:
        """On the GPU, where there is one."""
        self.need_cuda()
        student = self.student("cuda")
        x, t, s, condition, guidance = self.inputs(student)
        jumped = student.flow_map(x.cuda(), t.cuda(), s.cuda(), condition, guidance.cuda())
        self.expect(jumped.device.type == "cuda", "states on the device of the states given", describe(jumped))

    def test_cost_can_be_estimated(self) -> None:
        """``--dry-run`` runs it on tensors without memory."""
        student = self.student()
        x, t, s, condition, guidance = self.inputs(student)
        fake = FakeTensors("cpu")
        fake.convert(student)
        with torch.no_grad(), fake.active():
            jumped = student.flow_map(torch.empty_like(x), t, s, condition, guidance)
        self.expect(jumped.shape == x.shape, f"states of shape {tuple(x.shape)} without weights", describe(jumped))

    # -- Helpers --------------------------------------------------------------------------------------------------

    def student(self, device: str = "cpu") -> Student:
        """The student with the weights it starts from, float32."""
        return self._pair(device)[0]

    def inputs(self, student: Student, *, rows: int = _ROWS, dtype: torch.dtype = torch.float32) -> Inputs:
        """States of unit size, times 0 < s < t < 1, labels where it has classes, and guidance weights."""
        draws = draws_of(rows, dtype)
        t = (0.3 + 0.6 * draws.uniform("t")).to(dtype)
        s = t * (0.1 + 0.7 * draws.uniform("s")).to(dtype)
        weight = (1 + draws.uniform("guidance")).to(dtype)
        x = draws.noise("x", tuple(student.sample_shape))
        return x, t, s, self.condition(student, draws.index), weight

    def condition(self, student: Student, index: Tensor) -> Condition:
        """Labels; override it for a student that is conditioned on something else."""
        return None if student.num_classes is None else index % student.num_classes

    def _pair(self, device: str = "cpu") -> tuple[Student, Teacher | None]:
        """The student and the first teacher it takes, or none at all."""
        refusals: list[FreeflowError] = []
        for choice in (*self.teachers(), None):
            if choice is None and self.teacher is not None:
                break
            try:
                teacher = None if choice is None else self.build_teacher(choice, device)
                student: Student = self.build(device, teacher=teacher)
                if teacher is not None and tuple(teacher.sample_shape) == tuple(student.sample_shape):
                    student.load_teacher(teacher)
                return student.to(device).float(), teacher
            except FreeflowError as error:
                refusals.append(error)
        raise refusals[0 if len(refusals) == 1 else -2]
