"""What a student promises."""

import copy
import json
from typing import Any, ClassVar

import torch
from torch import Tensor

from freeflow_core.engine.checks import MIXED, row_mixing
from freeflow_core.engine.state import training_mode
from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import AverageVelocityStudent, Student, Teacher
from freeflow_core.math.flow import expand_times
from freeflow_core.testing.contracts.base import Choice, WithTeacher, draws_of, relative_difference
from freeflow_core.testing.contracts.network import ROWS, ROWS_ALONE, NetworkContract
from freeflow_core.types import Condition


class StudentContract(NetworkContract, WithTeacher):
    """Checks of a student, built beside a small teacher of freeflow's own unless ``teacher`` names another."""

    kind: ClassVar[str] = "student"

    def network(self, device: str = "cpu") -> Student:
        """The student with the weights it starts from, float32."""
        return self._pair(device)[0]

    def arguments(
        self, network: Student, dtype: torch.dtype = torch.float32, rows: int = ROWS
    ) -> tuple[Tensor, Tensor, Tensor, Condition, Tensor]:
        """States of unit size, times 0 < s < t < 1, labels where it has classes, and guidance weights."""
        draws = draws_of(rows, dtype)
        t = (0.3 + 0.6 * draws.uniform("t")).to(dtype)
        s = t * (0.1 + 0.7 * draws.uniform("s")).to(dtype)
        weight = (1 + draws.uniform("guidance")).to(dtype)
        x = draws.noise("x", tuple(network.sample_shape))
        return x, t, s, self.condition(network, draws.index), weight

    def condition(self, student: Student, index: Tensor) -> Condition:
        """Labels; override it for a student that is conditioned on something else."""
        return None if student.num_classes is None else index % student.num_classes

    def ask(self, network: Student, *arguments: Any) -> Tensor:
        return network.flow_map(*arguments)

    def test_builds_from_its_configuration(self) -> None:
        self.network()

    def test_training_mixes_no_rows(self) -> None:
        """In the mode in which training runs, where the engine keeps layers like BatchNorm at their statistics."""
        student = self.network()
        training_mode(student)
        mixed = row_mixing(student, *self.arguments(student))
        expected = "each row's jump to depend on its own state alone, in training as in sampling"
        self.expect(mixed <= MIXED, expected, f"{mixed:.2g} of it from the rows beside it", ROWS_ALONE)

    def test_jump_has_the_shape_of_the_states(self) -> None:
        student = self.network()
        for rows in (ROWS, 1):
            x, t, s, condition, guidance = self.arguments(student, rows=rows)
            for weight in (guidance, None):
                given = "None" if weight is None else "given"
                self.expect_tensor(student.flow_map(x, t, s, condition, weight), x.shape, f"x_s (guidance {given})")

    def test_forward_is_deterministic(self) -> None:
        student = self.network().eval()
        arguments = self.arguments(student)
        self.expect_repeatable(lambda: student(*arguments), "forward in evaluation mode")

    def test_a_jump_of_no_length_stays(self) -> None:
        student = self.network().double().eval()
        x, t, _, condition, guidance = self.arguments(student, torch.float64)
        advice = "For an average velocity, return freeflow_core.math.flow.average_velocity_jump(x_t, u, t, s)."
        self.expect_close(student.flow_map(x, t, t, condition, guidance), x, 1e-6, "X(x, t, t) = x", advice)

    def test_the_jump_follows_the_average_velocity(self) -> None:
        student = self._average_velocity_student()
        x, t, s, condition, guidance = self.arguments(student, torch.float64)
        output = student(x, t, s, condition, guidance)
        jumped = student.jump(output, x, t, s)
        expected = x - expand_times(t - s, x) * student.average_velocity(output, x, t, s)
        error, wrong_way = relative_difference(jumped, expected), relative_difference(jumped, 2 * x - expected)
        came = "x_t + (t - s) u, a jump with the wrong sign" if wrong_way < 1e-6 else f"a difference of {error:.2g}"
        advice = "Return freeflow_core.math.flow.average_velocity_jump(x_t, u, t, s)."
        self.expect(error < 1e-6, "x_s = x_t - (t - s) u, with s <= t and t = 1 the noise", came, advice)

    def test_only_forward_holds_gradients(self) -> None:
        student = self.network()
        x, t, s, condition, guidance = self.arguments(student)
        output = student(x, t, s, condition, guidance).detach()
        parts = {"jump": student.jump(output, x, t, s)}
        if isinstance(student, AverageVelocityStudent):
            parts["average_velocity"] = student.average_velocity(output, x, t, s)
        for name, value in parts.items():
            expected = f"{name}() to be a function of forward's output without weights of its own"
            advice = "Distributed training would never synchronise it: move the layers into forward()."
            self.expect(not value.requires_grad, expected, "a gradient that does not pass through forward()", advice)

    def test_gradients_are_finite(self) -> None:
        student = self.network()
        training_mode(student)
        target = draws_of(ROWS).noise("target", tuple(student.sample_shape))
        (student.flow_map(*self.arguments(student)) - target).square().mean().backward()  # type: ignore[no-untyped-call]
        gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
        bad = [name for name, grad in gradients.items() if not bool(torch.isfinite(grad).all())]
        moved = any(bool((grad != 0).any()) for grad in gradients.values())
        self.expect(not bad, "finite gradients of every weight", f"NaN or infinity in {', '.join(bad[:5])}")
        self.expect(moved, "a gradient of some weight", "none: forward() detaches it, or runs under no_grad")

    def test_time_derivatives_agree_with_differences(self) -> None:
        student = self._average_velocity_student()
        x, t, s, condition, guidance = self.arguments(student, torch.float64)
        direction = draws_of(len(x), torch.float64).noise("direction", tuple(student.sample_shape))
        zero, one = torch.zeros_like(t), torch.ones_like(t)

        def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return student.average_velocity(student(x, t, s, condition, guidance), x, t, s)

        self.expect_derivative("du/dt", u, (x, t, s), (direction, one, zero))
        self.expect_derivative("du/ds", u, (x, t, s), (0 * direction, zero, one))

    def test_says_what_it_took_from_the_teacher(self) -> None:
        student, teacher = self._pair()
        if teacher is None or tuple(teacher.sample_shape) != tuple(student.sample_shape):
            self.skip("no teacher of freeflow's own has its states; name one with `teacher`")
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        report = student.load_teacher(teacher)
        told = {*report.taken, *report.new}
        silent = [  # a report may name the parts of a wrapped network as that network does
            name
            for name, _ in student.named_parameters()
            if name not in told and not any(name.endswith(f".{known}") for known in told)
        ]
        named = "a LoadReport that names every parameter as taken or new"
        self.expect(not silent, named, f"none of {', '.join(silent[:5])}")
        changed = [name for name, value in teacher.state_dict().items() if not torch.equal(value, before[name])]
        self.expect(not changed, "a teacher left as it was", f"changed {', '.join(changed[:5])}")

    def test_comes_back_from_its_file(self) -> None:
        student = self.network().eval()
        state = student.network_state()
        try:
            config = json.loads(json.dumps(dict(state.config)))
        except TypeError as error:
            self.fail("a NetworkState.config of JSON values", str(error))
        copies = {name: value.detach().clone() for name, value in state.tensors.items()}
        rebuilt = type(state)(state.family, config, copies)
        again = type(student).restore(rebuilt, self.builder().context()).eval()
        inputs = self.arguments(student)
        same = torch.equal(student.flow_map(*inputs), again.to(inputs[0].dtype).flow_map(*inputs))
        advice = "network_state must hold every weight and buffer, and in `config` what the constructor needs."
        self.expect(same, "the same jumps from the student that from_state rebuilds", "other jumps", advice)

    def test_can_be_copied(self) -> None:
        student = self.network().eval()
        inputs = self.arguments(student)
        same = torch.equal(student.flow_map(*inputs), copy.deepcopy(student).flow_map(*inputs))
        self.expect(same, "the same jumps from copy.deepcopy(student)", "other jumps")

    def test_recomputed_activations_change_no_gradient(self) -> None:
        student = self.network()
        training_mode(student)
        again = copy.deepcopy(student)
        try:
            again.enable_activation_checkpointing()
        except ConfigError:
            self.skip("it says by a ConfigError that it cannot recompute its activations")
        found = []
        for network in (student, again):
            network.flow_map(*self.arguments(network)).square().mean().backward()  # type: ignore[no-untyped-call]
            found.append([p.grad for p in network.parameters() if p.grad is not None])
        self.expect(len(found[0]) == len(found[1]), "as many gradients with recomputed activations", "fewer, or more")
        for plain, recomputed in zip(*found, strict=True):
            self.expect_close(recomputed, plain, 1e-5, "the same gradients with recomputed activations")

    def _average_velocity_student(self) -> AverageVelocityStudent:
        student = self.network().double().eval()
        if not isinstance(student, AverageVelocityStudent):
            self.skip("it predicts no average velocity")
        return student

    def _pair(self, device: str = "cpu") -> tuple[Student, Teacher | None]:

        def beside(choice: Choice | None) -> tuple[Student, Teacher | None]:
            teacher = None if choice is None else self.build_teacher(choice, device)
            student: Student = self.build(device, teacher=teacher)
            if teacher is not None and tuple(teacher.sample_shape) == tuple(student.sample_shape):
                student.load_teacher(teacher)
            return student.to(device).float(), teacher

        return self.first_that_fits([*self.teachers(), *([None] if self.teacher is None else [])], beside)
