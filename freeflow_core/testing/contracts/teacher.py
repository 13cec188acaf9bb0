"""What a teacher promises."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from freeflow_core.errors import ConfigError
from freeflow_core.interfaces import Teacher
from freeflow_core.math.calibration import GOOD, diagnose, enough_rows
from freeflow_core.testing.contracts.base import count_rows, draws_of
from freeflow_core.testing.contracts.network import ROWS, NetworkContract
from freeflow_core.types import Condition, concatenate_conditions, describe, index_condition

_LARGE = 50_000_000
_CONVENTION = "freeflow's times run from t = 0 (data) to t = 1 (noise), and v = dx/dt points from data to noise."
_LABELS = "Return draws.integers('label', self.num_classes)."


class TeacherContract(NetworkContract):
    """Checks of a teacher.

    Attributes:
        trained: False for random weights: then there is no direction of time to check, and the class may not matter.
    """

    kind: ClassVar[str] = "teacher"
    trained: ClassVar[bool] = True
    answer = "velocities"

    def network(self, device: str = "cpu") -> Teacher:
        """The teacher as the engine holds it: float32, frozen, in evaluation mode."""
        return self.builder(device).teacher(self._choice()).float()

    def arguments(
        self, network: Teacher, dtype: torch.dtype = torch.float32, rows: int = ROWS
    ) -> tuple[Tensor, Tensor, Condition]:
        """States (N, *D) of unit size, times (N,) spread over ``time_range``, conditions."""
        draws = draws_of(rows, dtype)
        low, high = network.time_range
        t = (low + (high - low) * draws.uniform("t")).to(dtype)
        return draws.noise("x", tuple(network.sample_shape)), t, network.sample_condition(draws)

    def ask(self, network: Teacher, *arguments: Any) -> Tensor:
        return network.velocity(*arguments)

    def test_arrives_frozen(self) -> None:
        teacher = self.network()
        v = teacher.velocity(*self.arguments(teacher))
        wanting = [name for name, p in teacher.named_parameters() if p.requires_grad]
        advice = "A teacher is never trained: register its weights as parameters or buffers; leave requires_grad alone."
        came = f"a gradient, through {', '.join(wanting) or 'tensors that are no parameters'}"
        frozen = not wanting and not v.requires_grad
        self.expect(frozen, "a velocity without gradient from a frozen teacher", came, advice)

    def test_velocity_has_the_shape_of_the_states(self) -> None:
        teacher = self.network()
        for rows in (ROWS, 1):
            x, t, condition = self.arguments(teacher, rows=rows)
            self.expect_tensor(teacher.velocity(x, t, condition), x.shape, "a velocity")

    def test_velocity_is_finite_at_all_times(self) -> None:
        teacher = self.network()
        x, _, condition = self.arguments(teacher)
        low, high = teacher.time_range
        for time in (low, low + 1e-3 * (high - low), (low + high) / 2, high):
            v = teacher.velocity(x, torch.full((len(x),), time), condition)
            self.expect_tensor(v, x.shape, f"velocities at t = {time:g}, within the time_range that it declares,")

    def test_velocity_is_deterministic(self) -> None:
        teacher = self.network()
        arguments = self.arguments(teacher)
        advice = "Dropout and the like belong off: the engine calls eval()."
        self.expect_repeatable(lambda: teacher.velocity(*arguments), "velocity", advice)

    def test_conditions_fit(self) -> None:
        teacher, draws = self.network(), draws_of(32)
        drawn = self.expect_repeatable(lambda: teacher.sample_condition(draws), "sample_condition(draws)", _LABELS)
        given = {"sample_condition": drawn, "balanced_condition": teacher.balanced_condition(torch.arange(32))}
        for name, condition in given.items():
            fits = rows_of(condition) in (None, 32)
            self.expect(fits, f"32 rows, or None, from {name} of 32 samples", describe(condition))
            both = concatenate_conditions(index_condition(condition, torch.tensor([1, 3])), condition)
            self.expect(rows_of(both) in (None, 34), f"{name} of which rows can be chosen and joined", describe(both))
        labelled = teacher.num_classes is None or isinstance(drawn, Tensor | dict)
        expected = f"labels from sample_condition of a teacher with {teacher.num_classes} classes"
        self.expect(labelled, expected, describe(drawn), _LABELS)

    def test_labels_are_in_range(self) -> None:
        teacher = self.network()
        if teacher.num_classes is None:
            self.skip("it has no classes")
        classes = teacher.num_classes
        rows = min(4 * classes, 4_096)
        drawn, balanced = teacher.sample_condition(draws_of(rows)), teacher.balanced_condition(torch.arange(rows))
        for name, labels in (("sample_condition", drawn), ("balanced_condition", balanced)):
            if not isinstance(labels, Tensor):
                self.skip("its condition is not a tensor of labels")
            advice = "The null class is what null_condition returns, never one of these."
            self.expect_labels(labels, classes, rows, name, advice)
        assert isinstance(balanced, Tensor)
        counts = torch.bincount(balanced, minlength=classes)
        even = rows < classes or int(counts.max() - counts.min()) <= 1
        self.expect(even, "every class equally often from balanced_condition", f"counts {counts.tolist()[:20]}")

    def test_the_condition_matters(self) -> None:
        teacher = self.network()
        if teacher.num_classes is None or teacher.num_classes < 2 or not self.trained:
            self.skip("it has no classes to tell apart" if self.trained else "its weights are random")
        x, t, condition = self.arguments(teacher)
        if not isinstance(condition, Tensor):
            self.skip("its condition is not a tensor of labels")
        other = (condition + 1) % teacher.num_classes
        same = torch.equal(teacher.velocity(x, t, condition), teacher.velocity(x, t, other))
        self.expect(not same, "velocities that depend on the class", "the same velocity for every class")

    def test_guidance_at_weight_one_is_the_plain_velocity(self) -> None:
        teacher = self.network()
        x, t, condition = self.arguments(teacher)
        plain, rows = teacher.velocity(x, t, condition), list[int]()
        count_rows(teacher, rows)
        v = teacher.guided_velocity(x, t, condition, torch.ones(len(x)))
        expected = f"{len(x)} rows through velocity() at weight 1, which needs no unconditional half"
        self.expect(sum(rows) <= len(x), expected, f"{sum(rows)} rows")
        self.expect_close(v, plain, 1e-5, "guided_velocity at weight 1 to be velocity")

    def test_guidance_rule(self) -> None:
        """v_null + w (v - v_null) in the rows whose weight is not 1, or a ``ConfigError`` that guidance cannot be had.

        A teacher that overrides ``guided_velocity`` has a rule of its own; there only rows of weight 1 are compared.
        """
        teacher = self.network().double()
        x, t, condition = self.arguments(teacher, torch.float64)
        weight = torch.tensor([1.0, 2.5, 0.0, 1.0, 4.0, 1.0], dtype=torch.float64)
        own_rule = type(teacher).guided_velocity is not Teacher.guided_velocity
        null: Condition = None
        if not own_rule:
            try:
                null = teacher.null_condition(condition)
            except ConfigError:
                self.skip("it says by a ConfigError that it cannot be guided")
            fits = rows_of(null) == rows_of(condition)
            self.expect(fits, "null_condition with as many rows as the condition, or a ConfigError", describe(null))
        plain = teacher.velocity(x, t, condition)
        baseline = plain if own_rule else teacher.velocity(x, t, null)
        rows = list[int]()
        count_rows(teacher, rows)
        guided = teacher.guided_velocity(x, t, condition, weight)
        kept = "rows of weight 1 to keep their plain velocity"
        self.expect_close(guided[weight == 1], plain[weight == 1], 1e-6, kept)
        if own_rule:
            return
        expected = baseline + weight.reshape(-1, *[1] * (x.ndim - 1)) * (plain - baseline)
        if teacher.guidance_channels is not None:
            expected[:, teacher.guidance_channels :] = plain[:, teacher.guidance_channels :]
        advice = "Leave guided_velocity as the base class has it, unless the teacher is guided by something else."
        self.expect_close(guided, expected, 1e-6, "v_null + w (v - v_null) from guided_velocity", advice)
        most = len(x) + int((weight != 1).sum())
        once = f"at most {most} rows through velocity(): the unconditional half of guided rows alone"
        self.expect(sum(rows) <= most, once, f"{sum(rows)} rows")

    def test_time_and_sign_run_from_data_to_noise(self) -> None:
        if not self.trained:
            self.skip("its weights are random, so it has no direction of time")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        teacher = self.network(device)
        size = sum(p.numel() for p in teacher.parameters())
        if size > _LARGE and device == "cpu":
            self.skip(f"{size:,} weights are too many to integrate on a CPU; run this check on a GPU")
        draws = draws_of(enough_rows(teacher.sample_shape), device=device)
        condition = teacher.sample_condition(draws)

        def field(x_t: Tensor, t: Tensor) -> Tensor:
            return teacher.velocity(x_t, t, condition)

        shape = tuple(teacher.sample_shape)
        found = diagnose(field, shape, draws, num_steps=16, time_range=teacher.time_range)
        expected = f"a velocity field that explains the path of its own samples (miscalibration up to {GOOD:g})"
        came = f"a miscalibration of {found.given.value:.2g}{f': {found.reason}' if found.reason else ''}"
        self.expect(not found.is_wrong, expected, came, _CONVENTION)

    def test_forward_mode_agrees_with_differences(self) -> None:
        teacher = self.network().double()
        x, t, condition = self.arguments(teacher, torch.float64)
        t = t.clamp(0.1, 0.9)
        tangents = (teacher.velocity(x, t, condition), torch.ones_like(t))
        self.expect_derivative("dv/dt + (v . grad) v", lambda x, t: teacher.velocity(x, t, condition), (x, t), tangents)


def rows_of(condition: Condition) -> int | None:
    """N of a condition; None for None, -1 where its parts disagree."""
    if condition is None:
        return None
    tensors = condition.values() if isinstance(condition, dict) else (condition,)
    counts = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    return counts.pop() if len(counts) == 1 else -1
